"""Seeded masks of a wanted area: brush strokes, a rectangle, scattered marks.

Strokes and marks are drawn by ranking pixels by their distance to a curve or to centres and taking as many of the
nearest as the area asks for, so they hit it to the pixel. Each maker also labels the pixels by stroke, for colouring.
"""

import math

import torch

KINDS = ("brush", "rectangle", "scattered")


def _pixels_for(area: float, height: int, width: int) -> int:
    """Number of pixels nearest to ``area`` (0..1) of the picture, at least one."""
    if not 0 < area <= 1:
        raise ValueError(f"the area of an edit is a fraction above 0 and at most 1, not {area:g}.")
    return max(1, round(area * height * width))


def _nearest(points: torch.Tensor, height: int, width: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` pixels nearest to ``points`` (P, 2: row, column) as a mask, and the nearest point of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([rows.flatten(), columns.flatten()], 1)
    nearest, which = zip(
        *((block.min(1)) for block in (torch.cdist(part, points) for part in pixels.split(8192))), strict=True
    )
    order = torch.cat(nearest).argsort(stable=True)
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(height, width), torch.cat(which).view(height, width)


def brush(area: float, height: int, width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A few smooth strokes with a round brush; more and longer ones for a larger area."""
    count = _pixels_for(area, height, width)
    side = math.sqrt(height * width)
    strokes = max(1, min(8, round(area * 30)))
    # A stroke of length L and brush diameter d covers about L * d pixels; the diameter grows gently with the area.
    diameter = side * (0.03 + 0.12 * area)
    length = count / strokes / diameter
    points, owner = [], []
    for stroke in range(strokes):
        heading = torch.rand((), generator=generator).item() * 2 * math.pi
        bend = (torch.rand((), generator=generator).item() - 0.5) * 3
        start = (0.2 + 0.6 * torch.rand(2, generator=generator)) * torch.tensor([height, width])
        steps = max(2, int(length / max(1.0, diameter / 4)))
        along = torch.linspace(0, 1, steps)
        angle = heading + bend * along
        path = start + torch.stack([angle.sin(), angle.cos()], 1).cumsum(0) * (length / steps)
        # A stroke that leaves the picture comes back in, as a ball off a wall.
        bounds = torch.tensor([height, width], dtype=torch.float32)
        path = path.remainder(2 * bounds)
        points.append(torch.minimum(path, 2 * bounds - path))
        owner += [stroke] * steps
    mask, nearest = _nearest(torch.cat(points), height, width, count)
    return mask, torch.tensor(owner)[nearest]


def rectangle(area: float, height: int, width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One rectangle of whole pixels, its proportions drawn from 1:2 to 2:1, then corrected for the area."""
    count = _pixels_for(area, height, width)
    aspect = math.exp((torch.rand((), generator=generator).item() * 2 - 1) * math.log(2))
    wanted = min(height, max(1.0, math.sqrt(count * aspect)))
    # Within a third of the wanted height, take the nearest one whose area is within 1 %; else the best area there is.
    options = []
    for tall in range(1, height + 1):
        wide = round(count / tall)
        if 1 <= wide <= width:
            miss = abs(tall * wide - count) / count
            options.append((miss > 0.01, abs(tall - wanted) if miss <= 0.01 else miss, tall, wide))
    _, _, tall, wide = min(options)
    top = int(torch.randint(0, height - tall + 1, (), generator=generator))
    left = int(torch.randint(0, width - wide + 1, (), generator=generator))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + tall, left : left + wide] = True
    return mask, torch.zeros(height, width, dtype=torch.long)


def scattered(area: float, height: int, width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Small round marks all over the picture: the worst case for tiles of the same area."""
    count = _pixels_for(area, height, width)
    marks = max(6, min(96, count // 24))
    centres = torch.rand(marks, 2, generator=generator) * torch.tensor([height, width])
    return _nearest(centres, height, width, count)


def draw(kind: str, area: float, height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask (H, W) bool and stroke label (H, W) long of one ``kind`` at ``area`` (fraction); seeded."""
    makers = {"brush": brush, "rectangle": rectangle, "scattered": scattered}
    if kind not in makers:
        raise ValueError(f"unknown kind of edit {kind!r}; there are {', '.join(KINDS)}.")
    return makers[kind](area, height, width, torch.Generator().manual_seed(seed))
