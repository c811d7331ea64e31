"""Convolution and linear layer on rows, on an Apple GPU. The contract stands in ``sige.kernels.ops``.

One kernel serves them all: a product of gathered rows with the weight, in tiles, with nothing gathered in memory. A whole map goes
to PyTorch's own convolution.
"""

import torch
import torch.nn.functional as F

from sige.kernels import tap_rows, weights
from sige.kernels.mps import launch

_ROWS, _OUTPUTS, _DEPTH, _THREADS = 32, 64, 32, 128  # convolution.metal says the same
_BUSY = 64  # tiles that keep a GPU of 8 to 40 cores at work
_LEAST_SHARE = 4  # pieces of the depth below which a split costs more than it brings
_FEW = 16  # channels of a group below which a tile is mostly empty


def _splits(tiles, depth):
    """How many shares the depth is cut into where ``tiles`` tiles are too few, and the depth of a share, in whole pieces."""
    pieces = -(-depth // _DEPTH)
    wanted = max(1, min(-(-_BUSY // tiles), pieces // _LEAST_SHARE))
    share = -(-pieces // wanted)
    return -(-pieces // share), share * _DEPTH


def _product(source, index, weight, bias, groups, dtype):
    """Rows of ``source``, those that ``index`` (n, taps) names or all, times ``weight`` (O, C/groups[, kh, kw]). Returns (n, O)."""
    launch.serve(source, weight, bias)
    count, width = len(source if index is None else index), len(weight)
    out = torch.empty(count, width, dtype=dtype, device=source.device)
    if count == 0:
        return out
    matrix = weights.matrix(weight) if weight.dim() == 4 else weight.contiguous()
    depth, taps = matrix.shape[1], 0 if index is None else index.shape[1]
    channels, outputs = depth // max(taps, 1), width // groups
    places = matrix if index is None else launch.row_numbers(index)  # a kernel wants some tensor in every place
    offset = (matrix if bias is None else bias).contiguous()
    operands = dict(T_SOURCE=source, T_WEIGHT=weight, T_BIAS=offset, T_OUT=out)
    types = {name: launch.NUMBERS[tensor.dtype] for name, tensor in operands.items()}
    types["T_FACTOR"] = types["T_SOURCE"] if source.dtype == weight.dtype else "float"
    arguments = (source, places, matrix, offset, out)
    sizes = [count, depth, channels, outputs, *source.stride(), taps]
    biased = int(bias is not None)
    if groups > 1 and channels < _FEW:
        grid = launch.each(count, width)
        launch.run("convolution", "rows_product_of_few", types, (*arguments, [*sizes, biased, groups]), *grid)
        return out
    across, down = -(-outputs // _OUTPUTS), -(-count // _ROWS)
    splits, share = _splits(across * down * groups, depth)
    partial = out if splits == 1 else torch.empty(splits, count, width, dtype=torch.float32, device=source.device)
    arguments = (*arguments, partial, [*sizes, splits, share, biased, groups])
    threads = (across * _THREADS, down, groups * splits)
    launch.run("convolution", "rows_product", types, arguments, threads, (_THREADS, 1, 1))
    if splits > 1:
        arguments = (partial, offset, out, [splits, count, width, biased])
        launch.run("convolution", "sum_splits", types, arguments, *launch.each(count, width))
    return out


def conv_rows(source, index, weight, bias, groups, tiling=None):
    return _product(source, index, weight, bias, groups, weight.dtype)


def conv_tiles(source, index, tile, weight, bias, groups):
    return _product(
        source, tap_rows.of_tiles(index, tuple(tile), *weight.shape[2:]), weight, bias, groups, weight.dtype
    )


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    out = F.conv2d(image, weight, bias, stride, padding, dilation, groups)
    return out.contiguous(memory_format=torch.channels_last)


def linear_rows(rows, weight, bias):
    return _product(rows, None, weight, bias, 1, rows.dtype)
