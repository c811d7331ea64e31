"""Real church edits: the sample pairs that come with the public SIGE repository, read from a local folder.

They are not part of this project. Put ``church-432-original.png``, ``church-432-edited.png`` (and 423) in a folder
``sige-samples`` under ``$SIGE_DATA``, ``data/`` or ``../shared/data`` (both seen from the checkout's root).
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
_SAMPLES = ("church-423", "church-432")


def names() -> list[str]:
    """The two pairs whose areas the paper prints: 15.45 % (423) and 1.20 % (432)."""
    return list(_SAMPLES)


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return names()


def owns(name: str) -> bool:
    """True for the names of this data set."""
    return name in _SAMPLES


def search_path(folder: str | None = None) -> list[Path]:
    """The folders that are looked in, in order; only ``folder`` where one is given."""
    if folder:
        return [Path(folder)]
    roots = [Path(os.environ["SIGE_DATA"])] if os.environ.get("SIGE_DATA") else []
    roots += [_ROOT / "data", _ROOT.parent / "shared" / "data"]
    return [root / FOLDER for root in roots]


def files(name: str, folder: str | None = None) -> tuple[Path, Path]:
    """Paths of the original and the edited picture. MissingSample says where they were looked for."""
    if not owns(name):
        raise UnknownEdit(f"unknown church sample {name!r}; there are {', '.join(names())}.")
    wanted = (f"{name}-original.png", f"{name}-edited.png")
    places = search_path(folder)
    for place in places:
        if place.is_dir():
            pair = (place / wanted[0], place / wanted[1])
            if all(path.is_file() for path in pair):
                return pair
            break
    looked = ", ".join(str(place) for place in places)
    raise MissingSample(f"{name} needs {wanted[0]} and {wanted[1]} in the first folder that exists of: {looked}.")


def digest(name: str, folder: str | None = None, **options) -> str:
    """Digest of the two files' bytes."""
    state = hashlib.sha256()
    for path in files(name, folder):
        state.update(path.read_bytes())
    return state.hexdigest()[:12]


def read_picture(path: Path) -> torch.Tensor:
    """An RGB picture as (3, H, W) float32 in [-1, 1]."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def load(name: str, folder: str | None = None, eps: float = 0.01, dilation: int = 5) -> Edit:
    """Read a pair and make its mask the paper's way: any channel differs by more than ``eps``, then a plus-shaped
    dilation by ``dilation`` pixels (SIGE uses 0.01 and 5 for the church model). The area printed in the paper is the
    one after dilation."""
    from sige import masks

    before, after = files(name, folder)
    original, edited = read_picture(before), read_picture(after)
    mask = masks.dilate_cross(masks.difference_mask(original, edited, eps), dilation)
    return Edit(name, original, edited, mask, source="sample", dataset=DATASET)
