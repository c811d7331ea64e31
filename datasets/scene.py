"""A seeded synthetic scene of any size: sky, sun, hills and a chapel, with a little texture. No files, no licences."""

import math

import torch
import torch.nn.functional as F


def _noise(generator: torch.Generator, cells: int, height: int, width: int) -> torch.Tensor:
    """Smooth noise in [-1, 1], (H, W): a coarse random grid, enlarged bilinearly."""
    grid = torch.rand(1, 1, cells, cells, generator=generator) * 2 - 1
    return F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0, 0]


def _paint(picture: torch.Tensor, where: torch.Tensor, colour) -> None:
    """Fill the pixels ``where`` (H, W bool) of ``picture`` (3, H, W) with an RGB colour in [0, 1]."""
    picture[:, where] = torch.as_tensor(colour, dtype=picture.dtype)[:, None]


def scene(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) float32 in [-1, 1]. The same seed gives the same scene; the layout is relative to the size."""
    if height < 8 or width < 8:
        raise ValueError(f"a scene needs at least 8x8 pixels, not {height}x{width}.")
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand((), generator=generator).item()  # noqa: E731
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None, :].expand(height, width)

    top, low = (
        torch.tensor([draw(0.1, 0.4), draw(0.3, 0.5), draw(0.7, 0.95)]),
        torch.tensor([0.9, draw(0.6, 0.85), 0.7]),
    )
    picture = top[:, None, None] + (low - top)[:, None, None] * y
    _paint(picture, (x - draw(0.1, 0.9)) ** 2 + (y - draw(0.1, 0.3)) ** 2 < draw(0.04, 0.08) ** 2, (1.0, 0.95, 0.7))
    for depth in range(3):  # hills, the nearer the darker
        ridge = 0.62 + 0.1 * depth + 0.05 * torch.sin(2 * math.pi * (x * draw(0.7, 2.0) + draw(0, 1)))
        _paint(picture, y > ridge, (draw(0.1, 0.3), 0.55 - 0.14 * depth, draw(0.1, 0.3)))

    left, right, roof = draw(0.2, 0.35), draw(0.55, 0.7), draw(0.42, 0.5)
    wall = (x > left) & (x < right) & (y > roof) & (y < 0.88)
    _paint(picture, wall, (draw(0.6, 0.8), draw(0.55, 0.65), draw(0.45, 0.55)))
    middle, half = (left + right) / 2, (right - left) / 2
    gable = (y < roof) & (y > roof - 0.16) & ((x - middle).abs() < half * (y - roof + 0.16) / 0.16)
    _paint(picture, gable, (draw(0.4, 0.6), 0.22, 0.18))
    tower = ((x - middle).abs() < 0.035) & (y > roof - 0.32) & (y <= roof - 0.1)
    _paint(picture, tower, (0.7, 0.66, 0.58))
    for column in range(3):
        centre = left + (column + 1) * (right - left) / 4
        _paint(picture, ((x - centre).abs() < 0.022) & (y > roof + 0.08) & (y < roof + 0.2), (0.12, 0.16, 0.3))
    _paint(picture, ((x - middle).abs() < 0.03) & (y > 0.76) & (y < 0.88), (0.25, 0.15, 0.1))

    texture = 0.5 * _noise(generator, 9, height, width) + 0.5 * _noise(generator, 33, height, width)
    return (picture + 0.06 * texture).clamp(0, 1) * 2 - 1
