"""The masks that FISEdit found for 3,000 changes of a prompt: 96x96 latent positions, read from a local folder.

They are not part of this project. Put ``masks_3000.npz`` in a folder ``fisedit-masks`` beside ``sige-samples`` (``samples.py`` says
where that is). It holds ``index``, the ids, and ``masks_packed`` (n, 1152) uint8: the bits of each mask, row by row, True where
the prompt changed the picture. The pictures themselves were never published: a synthetic scene stands for them, recoloured inside
the mask. Names are ``fisedit-<id>``; 88, 3 and 12 are the paper's 5, 15 and 30 % edits.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from sige.datasets import samples
from sige.datasets.edit import Edit, MissingSample, UnknownEdit
from sige.datasets.scene import scene

DATASET = "prompt_masks"
FOLDER, FILE = "fisedit-masks", "masks_3000.npz"
SIDE = 96  # of a stored mask
_PIXELS = 8  # of a picture along a side of one latent position
_NAME = re.compile(r"fisedit-(0|[1-9]\d{0,3})")
_LAST = 2999


def names() -> list[str]:
    """The three edits that the paper measures time and MACs on: 4.2, 15.5 and 31.0 % of the area."""
    return ["fisedit-88", "fisedit-3", "fisedit-12"]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return [f"fisedit-<id from 0 to {_LAST}>"]


def owns(name: str) -> bool:
    """True for every name that reads as an id that was published."""
    match = _NAME.fullmatch(name)
    return bool(match) and int(match[1]) <= _LAST


def file(name: str, folder: str | None = None) -> Path:
    """Path of the file of masks. MissingSample says where it was looked for."""
    if not owns(name):
        raise UnknownEdit(f"unknown prompt edit {name!r}; there are {describe()[0]}.")
    places = samples.search_path(folder, FOLDER)
    place = next((place for place in places if place.is_dir()), None)
    if place and (place / FILE).is_file():
        return place / FILE
    looked = ", ".join(str(place) for place in places)
    raise MissingSample(f"{name} needs {FILE} in the first folder that exists of: {looked}.")


def read_mask(name: str, folder: str | None = None) -> torch.Tensor:
    """The stored mask, (96, 96) bool. MissingSample where the file does not hold the id."""
    path, number = file(name, folder), int(_NAME.fullmatch(name)[1])
    with np.load(path) as arrays:
        row = np.flatnonzero(arrays["index"] == number)
        if not len(row):
            raise MissingSample(f"{name} is not in {path}: it holds {len(arrays['index'])} masks.")
        bits = np.unpackbits(arrays["masks_packed"][row[0]])
    return torch.from_numpy(bits.reshape(SIDE, SIDE).astype(bool))


def read_all(folder: str | None = None) -> torch.Tensor:
    """Every stored mask, (n, 96, 96) bool, in the file's order."""
    with np.load(file(names()[0], folder)) as arrays:
        bits = np.unpackbits(arrays["masks_packed"], axis=1)
    return torch.from_numpy(bits.reshape(-1, SIDE, SIDE).astype(bool))


def digest(name: str, folder: str | None = None, **options) -> str:
    """Digest of the mask's bits."""
    return hashlib.sha256(read_mask(name, folder).numpy().tobytes()).hexdigest()[:12]


def load(name: str, folder: str | None = None, size: int = 768, seed: int = 0) -> Edit:
    """The mask on a picture of ``size`` x ``size`` pixels, each latent position 8x8 of them.

    Where there are fewer positions than the 96 of the file, those are edited that touch an edited one (64 at 512 pixels); where there
    are more, each takes the value that its middle falls on.
    """
    from sige import masks

    if not isinstance(size, int) or size < _PIXELS or size % _PIXELS:
        raise ValueError(
            f"prompt edits have no size {size!r}: give a multiple of {_PIXELS} pixels, such as 768 or 512."
        )
    positions = size // _PIXELS
    coarse = masks.reduce_max(read_mask(name, folder)[None], positions, positions)[0]
    mask = coarse.repeat_interleave(_PIXELS, 0).repeat_interleave(_PIXELS, 1)
    original = scene(size, size, seed)
    edited = torch.where(mask, -original.roll(1, 0), original)
    return Edit(name, original, edited, mask, source="sample", dataset=DATASET, prompt=True)
