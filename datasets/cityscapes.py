"""Edits of label maps, what GauGAN paints from: the public Cityscapes pair, and a bus put into a synthetic street.

``cityscapes-pair`` is read from ``cityscapes-pair.npz``, which is not part of this project and is looked for where the church samples
are (see samples.py). ``labels-1.2`` and the like are generated: they exist on every machine, at every size and area.

A map has 36 channels: one for each of 35 classes and one that is 1 where a pixel and a neighbour belong to two instances.
"""

import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from sige.datasets import samples, shapes
from sige.datasets.edit import Edit, MissingSample, UnknownEdit
from sige.datasets.street import BUS, street

DATASET = "cityscapes"
PAIR, FILE = "cityscapes-pair", "cityscapes-pair.npz"
CLASSES = 35
# The areas of the papers' label edits, in per cent, and of the reference measurements.
AREAS = (1.2, 2.02, 5, 13.5, 15, 30)
_NAME = re.compile(r"labels-(\d+(?:\.\d+)?)")


def names() -> list[str]:
    """The pair, whose area the paper prints as 1.18 %, and the generated edits at every area of ``AREAS``."""
    return [PAIR, *(f"labels-{area:g}" for area in AREAS)]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return [PAIR, "labels-<per cent of the area>"]


def owns(name: str) -> bool:
    """True for the pair and for every name that reads as labels and per cent, above 0 and at most 100."""
    match = _NAME.fullmatch(name)
    return name == PAIR or bool(match) and 0 < float(match[1]) <= 100


def _file(folder: str | None) -> Path:
    """Path of the pair; MissingSample says where it was looked for."""
    places = samples.search_path(folder)
    found = next((place for place in places if place.is_dir()), None)
    if found is None or not (found / FILE).is_file():
        looked = ", ".join(str(place) for place in places)
        raise MissingSample(f"{PAIR} needs {FILE} in the first folder that exists of: {looked}.")
    return found / FILE


def digest(name: str, folder: str | None = None, **options) -> str:
    """Digest of the pair's file; "" for a generated edit."""
    return hashlib.sha256(_file(folder).read_bytes()).hexdigest()[:12] if name == PAIR else ""


def edges(instances: torch.Tensor) -> torch.Tensor:
    """1 where a pixel of (H, W) differs from one above, below, left or right of it, else 0: float32 (H, W)."""
    found = torch.zeros(instances.shape, dtype=torch.bool)
    down, across = instances[1:] != instances[:-1], instances[:, 1:] != instances[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= across
    found[:, :-1] |= across
    return found.float()


def semantics(labels: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
    """What the generators take: one channel for each class and the edges between instances, float32 (36, H, W)."""
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"labels are Cityscapes ids, 0 to {CLASSES - 1}, not {labels.min()} to {labels.max()}.")
    one_hot = torch.zeros(CLASSES, *labels.shape).scatter_(0, labels[None], 1.0)
    return torch.cat([one_hot, edges(instances)[None]])


def load(
    name: str,
    folder: str | None = None,
    height: int = 256,
    width: int = 512,
    seed: int = 0,
    eps: float = 1e-3,
    dilation: int = 1,
) -> Edit:
    """Read the pair, at its own size, or make a generated edit of ``height`` x ``width``.

    The pair's mask is the paper's: any channel differs by more than ``eps``, then a plus-shaped dilation by ``dilation`` pixels.
    A generated edit has the area of its name, as near as a rectangle of whole pixels comes; what differs, so dilated, fills
    its mask but for the corners.
    """
    if not owns(name):
        raise UnknownEdit(f"unknown label edit {name!r}; there are {', '.join(describe())}, above 0 and at most 100.")
    return _pair(folder, eps, dilation) if name == PAIR else _generated(name, height, width, seed, dilation)


def areas(edit: Edit, eps: float = 1e-3, **options) -> dict[str, float]:
    """Shares of the map in which an edit differs before its mask was grown: ``raw``, the labels alone, and ``with_edges``."""
    from sige import masks

    parts = {"raw": slice(CLASSES), "with_edges": slice(None)}
    return {
        name: masks.difference_mask(edit.original[part], edit.edited[part], eps).float().mean().item()
        for name, part in parts.items()
    }


def _pair(folder, eps, dilation):
    """From the real map to the one with a car put in."""
    from sige import masks

    with np.load(_file(folder)) as arrays:
        original, edited = (
            semantics(*(torch.from_numpy(arrays[f"{side}_{what}"].astype(np.int64)) for what in ("label", "instance")))
            for side in ("gt", "synthetic")
        )
    mask = masks.dilate_cross(masks.difference_mask(original, edited, eps), dilation)
    return Edit(PAIR, original, edited, mask, source="sample", dataset=DATASET)


def _generated(name, height, width, seed, dilation):
    """A bus in a rectangle, narrower than the mask by the pixel around it whose edges change and by the dilation."""
    from sige import masks

    area = float(_NAME.fullmatch(name)[1]) / 100
    labels, instances = street(height, width, seed)
    mask, _ = shapes.draw("rectangle", area, height, width, seed * 1_000_003 + zlib.crc32(name.encode()))
    where = ~masks.dilate_cross(~mask, 1 + dilation)
    if not where.any():
        raise ValueError(
            f"{name} has no room for a bus in a map of {height}x{width}: its mask is {int(mask.sum())} pixels, a larger area would do."
        )
    edited = semantics(torch.where(where, BUS, labels), torch.where(where, 1000 * BUS, instances))
    return Edit(name, semantics(labels, instances), edited, mask, source="generated", dataset=DATASET)
