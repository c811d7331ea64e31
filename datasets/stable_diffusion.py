"""SIGE's edits for Stable Diffusion at 512x1024: two stroke edits (SDEdit) and one in-painting mask, read from a local folder.

They are not part of this project. Put ``sdedit-0-original.png``, ``sdedit-0-edited.png`` (and 1), ``inpaint-0-original.png`` and
``masks.npz`` in the folder ``sige-samples``; ``samples.py`` says where it is looked for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sige.datasets import samples
from sige.datasets.edit import Edit, MissingSample, UnknownEdit
from sige.datasets.scene import scene

DATASET = "stable_diffusion"
_STROKES = ("sdedit-0", "sdedit-1")
_HOLE, _HOLE_KEY = "inpaint-0", "inpaint_0"


def names() -> list[str]:
    """Two stroke edits, 1.72 % and 2.78 % before dilation, and the in-painting mask of 11.60 %."""
    return [_HOLE, *_STROKES]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return names()


def owns(name: str) -> bool:
    """True for the names of this data set."""
    return name in names()


def files(name: str, folder: str | None = None) -> tuple[Path, Path]:
    """Paths of the original and of the edited picture, or of the file of masks. MissingSample says where they were looked for."""
    if not owns(name):
        raise UnknownEdit(f"unknown Stable Diffusion sample {name!r}; there are {', '.join(names())}.")
    wanted = (f"{name}-original.png", "masks.npz" if name == _HOLE else f"{name}-edited.png")
    places = samples.search_path(folder)
    place = next((place for place in places if place.is_dir()), None)
    if place and all((place / file).is_file() for file in wanted):
        return place / wanted[0], place / wanted[1]
    looked = ", ".join(str(place) for place in places)
    raise MissingSample(f"{name} needs {' and '.join(wanted)} in the first folder that exists of: {looked}.")


def digest(name: str, folder: str | None = None, **options) -> str:
    """Digest of the files' bytes."""
    return samples.digest_of(files(name, folder))


def load(
    name: str, folder: str | None = None, eps: float = 0.02, dilation: int | Sequence[int] | None = None, seed: int = 0
) -> Edit:
    """A stroke edit's mask is where any channel differs by more than ``eps``, grown by the plus-shaped ``dilation``; the paper
    prints its area before dilation. The in-painting mask is read as it is, its edited picture is the synthetic scene inside it.

    dilation: pixels; several are carried out one after the other, as for SIGE's picture decoder (5, then 40). None: 5 for
    stroke edits and 0 for in-painting, as SIGE has it.
    """
    from sige import masks

    before, after = files(name, folder)
    original = samples.read_picture(before)
    if name == _HOLE:
        with np.load(after) as arrays:
            mask = torch.from_numpy(arrays[_HOLE_KEY].astype(bool))
        edited = scene(*mask.shape, seed)
    else:
        edited = samples.read_picture(after)
        mask = masks.difference_mask(original, edited, eps)
    steps = (0 if name == _HOLE else 5) if dilation is None else dilation
    for radius in [steps] if isinstance(steps, int) else steps:
        mask = masks.dilate_cross(mask, radius)
    if name == _HOLE:
        edited = torch.where(mask, edited, original)
    return Edit(name, original, edited, mask, source="sample", dataset=DATASET)
