"""Convolution at chosen positions on a CPU: the compiled kernels, and `composed` for what they do not serve."""

import torch

from sige.kernels import tap_rows
from sige.kernels.composed import convolution as composed
from sige.kernels.cpu import winograd
from sige.kernels.cpu.product import multiplied, narrow_map, product

FEW_POSITIONS = 128  # up to here 1 to 1.4 times as fast as oneDNN's, from 256 on 0.9 to 1: measured with cold caches on two Zen 5 cores


def conv_rows(source, index, weight, bias, groups, tiling=None):
    if not multiplied(len(index), source, weight, bias, groups=groups):
        return composed.conv_rows(source, index, weight, bias, groups)
    return product(source, index, weight, bias, len(index))


def conv_tiles(source, index, tile, weight, bias, groups):
    if not multiplied(len(index) * tile[0] * tile[1], source, weight, bias, groups=groups):
        return composed.conv_tiles(source, index, tile, weight, bias, groups)
    rows = tap_rows.of_tiles(index, tuple(tile), *weight.shape[2:])
    return product(source, rows, weight, bias, len(rows))


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    """Compiled are maps of which four outputs are made at a time, those of a few positions, which take as long as reading their weights
    ahead of time, and those of a few outputs. All others oneDNN's convolution does as fast."""
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    positions = image[:, 0].numel()
    compiled, few = groups == 1 and multiplied(positions, image, weight, bias), positions <= FEW_POSITIONS
    quads = winograd.quads_of_map(image, weight, *geometry) if compiled else None
    if not compiled or quads is None and not few and not composed.narrow(weight, *geometry, groups):
        return composed.conv_map(image, weight, bias, *geometry, groups)
    image = image.contiguous(memory_format=torch.channels_last)
    if quads is None and not few:
        return narrow_map(image, weight, bias)
    batch, channels, *size = image.shape
    index, count = None, batch * size[0] * size[1]
    if quads is None:
        index, size = tap_rows.of_map(batch, *size, tuple(weight.shape[2:]), *geometry)
        count = len(index)
    rows = product(image.permute(0, 2, 3, 1).reshape(-1, channels), index, weight, bias, count, quads)
    return rows.view(batch, *size, len(weight)).permute(0, 3, 1, 2)


def linear_rows(rows, weight, bias):
    if not multiplied(len(rows), rows, weight, bias):
        return composed.linear_rows(rows, weight, bias)
    return product(rows, None, weight, bias, len(rows))
