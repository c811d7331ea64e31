"""Convolution at chosen positions on a CPU: the compiled kernels, and `composed` for what they do not serve."""

import torch

from sige.kernels import tap_rows
from sige.kernels.composed import convolution as composed
from sige.kernels.cpu import winograd
from sige.kernels.cpu.product import narrow_map, product, served

FEW_POSITIONS = 128  # up to here 1 to 1.4 times as fast as oneDNN's, from 256 on 0.9 to 1: measured with cold caches on two Zen 5 cores
SOME_POSITIONS = 4096  # of larger maps the numbers of all rows that all taps read are not worth their memory


def conv_rows(source, index, weight, bias, groups):
    if not served(source, weight, bias, groups=groups):
        return composed.conv_rows(source, index, weight, bias, groups)
    return product(source, index, weight, bias, len(index))


def conv_tiles(source, index, tile, weight, bias, groups):
    if not served(source, weight, bias, groups=groups):
        return composed.conv_tiles(source, index, tile, weight, bias, groups)
    rows = tap_rows.of_tiles(index, tuple(tile), *weight.shape[2:])
    return product(source, rows, weight, bias, len(rows))


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    """Maps of a few positions take as long as reading their weights, which the compiled product does ahead of time; of those of some
    thousands it makes four outputs at a time where it can. All others oneDNN's convolution does as fast."""
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    if not served(image, weight, bias, groups=groups):
        return composed.conv_map(image, weight, bias, *geometry, groups)
    index, size = _read(image, weight, *geometry)
    if index is None and not composed.narrow(weight, *geometry, groups):
        return composed.conv_map(image, weight, bias, *geometry, groups)
    image = image.contiguous(memory_format=torch.channels_last)
    if index is None:
        return narrow_map(image, weight, bias)
    rows = product(image.permute(0, 2, 3, 1).reshape(-1, image.shape[1]), index, weight, bias, len(index))
    return rows.view(len(image), *size, len(weight)).permute(0, 3, 1, 2)


def _read(image, weight, *geometry):
    """The rows that the taps of a whole map's convolution read, and its output's size; None, None where other ways are as fast."""
    batch, _, height, width = image.shape
    positions = batch * height * width
    if positions > SOME_POSITIONS:
        return None, None
    index, size = tap_rows.of_map(batch, height, width, tuple(weight.shape[2:]), *geometry)
    fast = positions <= FEW_POSITIONS or winograd.quads(index, len(index), positions, weight) is not None
    return (index, size) if fast else (None, None)


def linear_rows(rows, weight, bias):
    if not served(rows, weight, bias):
        return composed.linear_rows(rows, weight, bias)
    return product(rows, None, weight, bias, len(rows))
