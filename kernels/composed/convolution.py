"""Convolution at chosen positions on a CPU: gather the taps, then one matrix product.

The product runs through oneDNN with prepacked weights, which reaches twice the rate of the BLAS behind ``F.linear`` on AVX-512
machines (about 490 against 210 GFLOP/s in float32 on two Zen 5 cores, 980 in bfloat16) and needs no tiles: from some 60 rows on
it is as fast as the dense convolution, whatever the shape of the active set. Rows are taken in chunks that stay in the
last-level cache.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sige.kernels.kept import Kept

CHUNK_BYTES = 4 << 20  # of gathered input at a time, so that the product reads it from cache
ONE_CHUNK_BYTES = 10 << 20  # up to here one product beats several
_VECTOR = 16  # float32 numbers in the widest vector register
_LEAST_ROWS = 4  # below, reading the weights once is all there is to do
_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_logger = logging.getLogger(__name__)
_packed, _packed_maps, _tap_matrices = Kept(), Kept(), Kept()
_outside = WeakTensorKeyDictionary()


@functools.lru_cache(maxsize=None)
def prepacking():
    """Whether this PyTorch build has oneDNN's prepacked linear layer; says once why not."""
    usable = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not usable:
        _logger.warning(
            "oneDNN's prepacked linear layer is not in this PyTorch build: rows go through F.linear instead"
        )
    return usable


def packed_bytes():
    """Bytes held by prepacked copies of weights, over all live weights."""
    return sum(weight.nbytes for packed in (_packed, _packed_maps) for weight, _ in packed.items())


def _matrix(weight):
    """A convolution's weight (O, C, kh, kw) as a matrix (O, kh*kw*C), taps major; a linear layer's as it is."""
    weight = weight.detach()
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1) if weight.dim() == 4 else weight


def _pack(weight):
    """The prepacked matrix of a weight; remade when the weight changes. None where oneDNN would not gain."""
    # Few outputs or few inputs: oneDNN falls back to a slow reordering at every call.
    if not prepacking() or weight.dtype not in _PACKED_DTYPES or weight.shape[0] < 16 or weight[0].numel() < 64:
        return None
    return _packed.of(weight, lambda: torch.ops.mkldnn._reorder_linear_weight(_matrix(weight).contiguous(), None))


def _product(rows, weight, bias):
    packed = _pack(weight) if rows.shape[0] >= _LEAST_ROWS else None
    if packed is None:
        return F.linear(rows, _matrix(weight), bias)
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")


def _clamped(index):
    """``index`` with -1 replaced by 0, and the flat places where that happened (None if nowhere). Made once an index."""
    found = _outside.get(index)
    if found is None:
        places = (index.flatten() < 0).nonzero().flatten()
        found = (index.clamp(min=0), places) if places.numel() else (index, None)
        _outside[index] = found
    return found


def conv_rows(source, index, weight, bias, groups, tiling=None):
    count, taps = index.shape
    if count == 0:
        return weight.new_empty(0, weight.shape[0])
    safe, outside = _clamped(index)
    row_bytes = taps * source.shape[1] * source.element_size()
    most = max(64, CHUNK_BYTES // row_bytes) if count * row_bytes > ONE_CHUNK_BYTES else count
    step = -(-count // -(-count // most))  # equal chunks
    parts = []
    for start in range(0, count, step):
        chosen = safe[start : start + step]
        rows = torch.index_select(source, 0, chosen.reshape(-1))
        if outside is not None:
            here = outside
            if count > step:
                here = outside[(outside >= start * taps) & (outside < (start + step) * taps)] - start * taps
            rows.index_fill_(0, here, 0)
        rows = rows if rows.dtype == weight.dtype else rows.to(weight.dtype)
        if groups == 1:
            parts.append(_product(rows.view(chosen.shape[0], -1), weight, bias))
        else:
            patch = rows.view(chosen.shape[0], *weight.shape[2:], source.shape[1]).permute(0, 3, 1, 2)
            parts.append(F.conv2d(patch, weight, bias, groups=groups).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def conv_tiles(source, index, tile, weight, bias, groups):
    count, channels = index.shape[0], source.shape[1]
    if count == 0:
        return weight.new_empty(0, weight.shape[0])
    safe, outside = _clamped(index)
    rows = torch.index_select(source, 0, safe.reshape(-1))
    if outside is not None:
        rows.index_fill_(0, outside, 0)
    rows = rows if rows.dtype == weight.dtype else rows.to(weight.dtype)
    high, wide = (size + side - 1 for size, side in zip(tile, weight.shape[2:]))
    out = F.conv2d(rows.view(count, high, wide, channels).permute(0, 3, 1, 2), weight, bias, groups=groups)
    return out.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])


def narrow(weight, stride, padding, dilation, groups):
    """Whether a whole convolution, to a map as large as its input, has so few outputs that all its taps are multiplied at once. In
    bfloat16 oneDNN's convolution takes two thirds of that time, and its sums have more digits."""
    same = all(2 * pad == side - 1 for pad, side in zip(padding, weight.shape[2:]))
    few = weight.shape[0] < 16 <= weight[:, 0].numel()
    return weight.dtype == torch.float32 and same and few and tuple(stride) == tuple(dilation) == (1, 1) and groups == 1


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    image = image.contiguous(memory_format=torch.channels_last)
    if not prepacking() or weight.dtype not in _PACKED_DTYPES:
        return F.conv2d(image, weight, bias, stride, padding, dilation, groups)
    if narrow(weight, stride, padding, dilation, groups):
        return _narrow_map(image, weight, bias)
    # oneDNN's blocking depends on the shape: one packed copy, for the shape last seen. Dense levels see one shape only.
    seen = tuple(padding), tuple(stride), tuple(dilation), groups, tuple(image.shape)
    pack = torch.ops.mkldnn._reorder_convolution_weight
    packed = _packed_maps.of(weight, lambda: pack(weight.detach(), *seen), *seen)
    out = torch.ops.mkldnn._convolution_pointwise(
        image, packed, bias, padding, stride, dilation, groups, "none", [], ""
    )
    return out.contiguous(memory_format=torch.channels_last)


def _narrow_map(image, weight, bias):
    """A convolution to a few channels, such as a U-Net's last: one product for all taps, then the taps' results shifted and
    added. Twice as fast as oneDNN's convolution, which pads the outputs to whole vectors."""
    batch, channels, height, width = image.shape
    out_channels, _, high, wide = weight.shape
    rows = image.permute(0, 2, 3, 1).reshape(-1, channels)
    taps = _product(rows, _tap_matrix(weight), None).view(batch, height, width, -1)
    shape = (batch, height + high - 1, width + wide - 1, out_channels)
    total = taps.new_zeros(shape) if bias is None else bias.expand(shape).clone()
    for y in range(high):
        for x in range(wide):
            first = (y * wide + x) * out_channels
            part = taps[..., first : first + out_channels]
            total[:, high - 1 - y : high - 1 - y + height, wide - 1 - x : wide - 1 - x + width] += part
    top, left = (high - 1) // 2, (wide - 1) // 2
    inner = total[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    return inner.contiguous(memory_format=torch.channels_last)


def _tap_matrix(weight):
    """Weight (O, C, kh, kw) as a matrix of C columns: one row for each tap and output channel, and rows of zeros up to whole
    vectors, with which the product takes two thirds of the time. Remade when the weight changes."""
    zeros = -weight[:, 0].numel() % _VECTOR
    taps = weight.detach().permute(2, 3, 0, 1)
    return _tap_matrices.of(weight, lambda: F.pad(taps.reshape(-1, weight.shape[1]), (0, 0, 0, zeros)))


def linear_rows(rows, weight, bias):
    if rows.shape[0] == 0:
        return rows.new_empty(0, weight.shape[0])
    return _product(rows.contiguous(), weight, bias)
