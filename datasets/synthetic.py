"""Generated edits on a synthetic scene: brush strokes, rectangles, scattered marks and brightened regions, at any area.

Names say kind and per cent of the area: ``brush-1.2``, ``rectangle-30``, ``scattered-5``, ``brighten-30``. They exist
on every machine and at every size, and the same seed gives the same edit.
"""

import re
import zlib

import torch

from sige.datasets import shapes
from sige.datasets.edit import Edit, UnknownEdit
from sige.datasets.scene import scene

DATASET = "synthetic"
# Every edit size the two papers print, in per cent, and two beyond.
AREAS = (1.2, 2.0, 3.8, 5, 7.2, 9.4, 11.5, 13.5, 15, 15.5, 30, 60, 100)
_NAME = re.compile(rf"({'|'.join(shapes.KINDS)}|brighten)-(\d+(?:\.\d+)?)")
_COLOURS = torch.tensor(
    [(0.9, -0.8, -0.7), (-0.8, 0.7, 0.9), (0.9, 0.8, -0.8), (-0.7, -0.8, 0.9), (0.8, -0.6, 0.9), (-0.9, 0.8, -0.6)]
)


def names() -> list[str]:
    """The listed ones: the three kinds at every area of ``AREAS``, and one brightened region."""
    return [f"{kind}-{area:g}" for kind in shapes.KINDS for area in AREAS] + ["brighten-30"]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return [f"{kind}-<per cent of the area>" for kind in (*shapes.KINDS, "brighten")]


def parse(name: str) -> tuple[str, float]:
    """("brush", 0.012) from "brush-1.2". UnknownEdit for a name of no such kind or an area not in (0, 100]."""
    match = _NAME.fullmatch(name)
    if not match or not 0 < float(match[2]) <= 100:
        raise UnknownEdit(
            f"{name!r} is not <kind>-<per cent, above 0 and at most 100>; kinds: {', '.join(shapes.KINDS)}, brighten."
        )
    return match[1], float(match[2]) / 100


def owns(name: str) -> bool:
    """True for every name that reads as kind and per cent."""
    try:
        return bool(parse(name))
    except UnknownEdit:
        return False


def digest(name: str, **options) -> str:
    """ "": the code and the options alone make these edits, and both are part of a run's identity."""
    return ""


def load(name: str, height: int = 256, width: int = 256, seed: int = 0, brightness: float = 2.0) -> Edit:
    """Make the edit ``name``. All edits of one size and seed share their original, so one recording serves them all.

    ``brightness`` is what a ``brighten`` edit adds inside its rectangle, in input units ([-1, 1] is the whole range);
    it moves the statistics of every normalisation, which strokes hardly do.
    """
    kind, area = parse(name)
    original = scene(height, width, seed)
    shape = "rectangle" if kind == "brighten" else kind
    draw_seed = seed * 1_000_003 + zlib.crc32(name.encode())
    mask, label = shapes.draw(shape, area, height, width, draw_seed)
    if kind == "brighten":
        changed = original + brightness
    else:
        first = draw_seed % len(_COLOURS)
        changed = _COLOURS[(label + first) % len(_COLOURS)].permute(2, 0, 1)
        shade = torch.linspace(-0.1, 0.1, width).expand(height, width)  # a painted stroke is not quite flat
        changed = (changed + shade).clamp(-1, 1)
    edited = torch.where(mask, changed, original)
    return Edit(name, original, edited, mask, source="generated", dataset=DATASET)
