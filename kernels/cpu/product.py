"""Products of rows and weights by the compiled kernels: which calls they serve, and the weights as they read them."""

import functools

import torch
import torch.nn.functional as F

from sige.kernels.activations import ACTIVATIONS
from sige.kernels.cpu import winograd
from sige.kernels.cpu.library import address, library, plain
from sige.kernels.kept import Kept

_panelled = Kept()


@functools.lru_cache(maxsize=None)
def _zeros(channels):
    return torch.zeros(channels)


def packed_bytes():
    """Bytes held by rearranged copies of weights, over all live weights."""
    return sum(packed.nbytes for _, packed in _panelled.items())


def _in_panels(matrix):
    """A matrix (K, lanes) in panels (K, width) of lanes, one after the other, the last one filled up with zeros: to one vector where
    that holds what is left."""
    wide, lanes, count = library().panel_width(), library().vector_width(), matrix.shape[1]
    whole, rest = count // wide * wide, count % wide
    parts = [matrix[:, :whole].unflatten(1, (-1, wide)).transpose(0, 1).reshape(-1)]
    if rest:
        parts.append(F.pad(matrix[:, whole:], (0, (lanes if rest <= lanes else wide) - rest)).reshape(-1))
    return torch.cat(parts)


def _panels(weight, arranged):
    """``arranged`` (K, lanes), a view of the weight as a matrix, in panels. Made once for each state of the weight."""
    return _panelled.of(weight, lambda: _in_panels(arranged(weight.detach())), key=arranged)


def _by_output(weight):
    """A weight (O, C, kh, kw) or (O, C) as (kh*kw*C, O), taps major."""
    return weight.permute(2, 3, 1, 0).reshape(-1, len(weight)) if weight.dim() == 4 else weight.t()


def _by_tap(weight):
    """A weight (O, C, kh, kw) as (C, kh*kw*O): all taps' outputs side by side."""
    return weight.permute(1, 2, 3, 0).flatten(1)


def served(*tensors, groups=1):
    """Whether the compiled kernels are there and serve these tensors (None are left out), in a convolution of ``groups``."""
    known = all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
    return known and groups == 1 and library() is not None


def product(source, index, weight, bias, count, quads=None):
    """Rows (count, O): at ``index`` (count or more, taps) of ``source`` (N, C), or of its first rows where ``index`` is None, or by
    ``quads``, as `winograd` finds them. All numbers are float32."""
    return finished_product(source, index, weight, bias, count, quads=quads)[0]


def finished_product(
    source, index, weight, bias, count, vector=None, residual=None, residual_rows=None, sample=None, scale=None, shift=None,
    activation="none", slope=0.0, target=None, positions=None, raw=True,
    quads=None,
):  # fmt: skip
    """What `sige.kernels.ops.conv_rows_fused` gives, None in place of empty results."""
    shape, device = (count, len(weight)), source.device
    out = torch.empty(shape, device=device) if raw else None
    wanted = target is not None or scale is not None or activation != "none"
    second = torch.empty(shape, device=device) if wanted else None
    if count == 0:
        return out, second
    picks = sample if vector is not None and len(vector) > 1 else None
    given = source, index, bias, vector, picks, residual, residual_rows, scale, shift, sample, positions
    # Named, so that what had to be copied lives as long as the call.
    source, index, bias, vector, picks, residual, residual_rows, scale, shift, sample, positions = map(plain, given)
    taps, channels = 1 if index is None or index.dim() == 1 else index.shape[1], source.shape[1]
    zeros = _zeros(channels)
    ends = (
        address(bias), address(vector), address(picks), address(residual), address(residual_rows), address(scale), address(shift),
        address(sample), ACTIVATIONS.index(activation), slope, address(target), address(positions), address(zeros), address(out),
        address(second), torch.get_num_threads(),
    )  # fmt: skip
    quads = quads or winograd.quads(given[1], count, len(source), weight)
    if quads is not None:
        side, windows, members = quads
        packed = _panels(weight, winograd.transformed if side == 4 else winograd.transformed_enlarged)
        places = address(windows), address(members), len(windows), side
        library().conv_quads(address(source), *places, channels, address(packed), len(weight), *ends)
        return out, second
    packed = _panels(weight, _by_output)
    library().conv_rows(address(source), address(index), count, taps, channels, address(packed), len(weight), *ends)
    return out, second


def narrow_map(image, weight, bias, scale=None, shift=None, activation="none", slope=0.0):
    """A convolution to a few channels, such as a U-Net's last, whose output is as large as its input: ``image`` (B, C, H, W),
    channels-last, in float32. Each line's products with all taps are made once, then shifted and added. Before, the image goes
    through ``scale`` and ``shift`` (B, C) and the activation, line by line too."""
    batch, channels, height, width = image.shape
    outputs, _, high, wide = weight.shape
    out = image.new_empty(batch, height, width, outputs)
    packed, bias = _panels(weight, _by_tap), plain(bias)
    library().conv_narrow(
        image.data_ptr(), batch, height, width, channels, packed.data_ptr(), high, wide, outputs, address(bias), address(scale),
        address(shift), ACTIVATIONS.index(activation), slope, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def map_affine(image, groups, weight, bias, eps):
    """Scale and shift (B, C) of a group norm of a whole map (B, C, H, W), channels-last, in float32, by its own statistics, summed in
    float64 but for the 256 pixels of a part."""
    batch, channels, height, width = image.shape
    scale, shift = image.new_empty(batch, channels), image.new_empty(batch, channels)
    weight, bias = plain(weight), plain(bias)
    library().map_statistics(
        address(image), batch, height * width, channels, groups, address(weight), address(bias), eps, address(scale), address(shift),
        torch.get_num_threads(),
    )  # fmt: skip
    return scale, shift
