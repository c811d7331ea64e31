"""Masks and convolutions drawn for the tests of plans."""

import torch

from sige.windows import Window


def blot(height, width, batch=1, seed=0):
    """A mask with a rectangle, lone pixels and pixels on the last row and column."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, height, width, generator=generator) > 0.995
    mask[:, height // 3 : height // 3 + 4, width // 2 : width // 2 + 7] = True
    mask[0, -1, width // 4] = mask[0, height // 2, -1] = True
    return mask


def dot(side, y, x):
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[0, y, x] = True
    return mask


def window(size, kernel, stride=1, padding=None, dilation=1, scale=1):
    padding = dilation * (kernel // 2) if padding is None else padding
    out = tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in size)
    return Window(size, out, (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), scale)
