"""Real church edits: the sample pairs that come with the public SIGE repository, read from a local folder.

They are not part of this project. Put ``church-432-original.png``, ``church-432-edited.png`` (and 423), and for the toy
example ``masks.npz``, in a folder ``sige-samples`` under ``$SIGE_DATA``, ``data/`` or ``../shared/data`` (both seen
from the checkout's root).
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from sige.datasets.edit import Edit, MissingSample, UnknownEdit

DATASET = "church"
FOLDER = "sige-samples"
_ROOT = Path(__file__).resolve().parents[1]
_CHURCHES = ("church-423", "church-432")
_TOY, _TOY_PICTURE = "toy-mask", "church-423"


def names() -> list[str]:
    """The two pairs whose areas the paper prints, 15.45 % (423) and 1.20 % (432), and the mask of its toy example."""
    return [*_CHURCHES, _TOY]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return names()


def owns(name: str) -> bool:
    """True for the names of this data set."""
    return name in names()


def search_path(folder: str | None = None, name: str = FOLDER) -> list[Path]:
    """The folders called ``name`` that are looked in, in order; only ``folder`` where one is given."""
    if folder:
        return [Path(folder)]
    roots = [Path(os.environ["SIGE_DATA"])] if os.environ.get("SIGE_DATA") else []
    roots += [_ROOT / "data", _ROOT.parent / "shared" / "data"]
    return [root / name for root in roots]


def files(name: str, folder: str | None = None) -> tuple[Path, ...]:
    """Paths of the original, the edited picture and any mask file. MissingSample says where they were looked for."""
    if not owns(name):
        raise UnknownEdit(f"unknown church sample {name!r}; there are {', '.join(names())}.")
    picture = _TOY_PICTURE if name == _TOY else name
    wanted = [f"{picture}-original.png", f"{picture}-edited.png"] + ["masks.npz"] * (name == _TOY)
    places = search_path(folder)
    for place in places:
        if place.is_dir():
            found = tuple(place / file for file in wanted)
            if all(path.is_file() for path in found):
                return found
            break
    looked = ", ".join(str(place) for place in places)
    raise MissingSample(f"{name} needs {' and '.join(wanted)} in the first folder that exists of: {looked}.")


def digest(name: str, folder: str | None = None, **options) -> str:
    """Digest of the files' bytes."""
    return digest_of(files(name, folder))


def digest_of(paths) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the files' bytes, one after the other."""
    state = hashlib.sha256()
    for path in paths:
        state.update(path.read_bytes())
    return state.hexdigest()[:12]


def read_picture(path: Path, size: int | None = None) -> torch.Tensor:
    """An RGB picture as (3, H, W) float32 in [-1, 1]; one that is larger than ``size`` is shrunk to that square, by
    bilinear filtering: then the areas of the church edits at 128x128 are those of the reference code (1.17, 14.35 %)."""
    from PIL import Image

    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        if size and min(picture.size) > size:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def load(name: str, folder: str | None = None, eps: float = 0.01, dilation: int = 5, size: int | None = None) -> Edit:
    """Read a pair and make its mask the paper's way: any channel differs by more than ``eps``, then a plus-shaped
    dilation by ``dilation`` pixels (SIGE uses 0.01 and 5 for the church model). The area printed in the paper is the
    one after dilation. The toy's mask is read as it is. ``size``: the side to which larger pictures are shrunk."""
    from sige import masks

    before, after, *stored = files(name, folder)
    if stored:
        original, edited = read_picture(before), read_picture(after)
        with np.load(stored[0]) as arrays:
            mask = torch.from_numpy(arrays["toy"].astype(bool))
        return Edit(name, original, edited, mask, source="sample", dataset=DATASET)
    original, edited = read_picture(before, size), read_picture(after, size)
    mask = masks.dilate_cross(masks.difference_mask(original, edited, eps), dilation)
    return Edit(name, original, edited, mask, source="sample", dataset=DATASET)
