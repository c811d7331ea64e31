"""Transposed convolution: each output position gathers the taps that reach it.

With stride s, output row y + padding = s*q + r receives the weight's taps r, r + s, r + 2s, ... from the input rows q, q - 1, ...
The outputs of one (r, c) are a phase: an ordinary convolution of stride 1 with every s-th tap. An edit computes the active
positions phase by phase, so that each costs its own taps alone.
"""

import dataclasses

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_rows
from sige.kernels import ops
from sige.kernels.kept import Kept
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.windows import Window, rows_read

_IMAGE = ("b", "f", "h", "w")
_parts = Kept()


@dataclasses.dataclass(frozen=True)
class Transposed:
    """Geometry of a transposed convolution from a map ``size`` (H, W) to one of ``out_size``. ``padding`` cuts the output."""

    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def phases(self):
        """(r, c, (taps down, taps across)) of each phase. One without taps gives the bias alone."""
        across = [(c, len(range(c, self.kernel[1], self.stride[1]))) for c in range(self.stride[1])]
        down = [(r, len(range(r, self.kernel[0], self.stride[0]))) for r in range(self.stride[0])]
        return [(r, c, (high, wide)) for r, high in down for c, wide in across]

    def reads(self, chosen):
        """For each phase (rows, index): the (n,) rows of ``chosen`` that it makes, and the (n, taps) input rows that these read,
        -1 outside the map. The taps are in the order of :func:`phase_weights`."""
        found, device = [], chosen.device
        places = chosen.content.positions
        sample, y, x = (
            places // (chosen.height * chosen.width),
            places // chosen.width % chosen.height,
            places % chosen.width,
        )
        y, x = y + self.padding[0], x + self.padding[1]
        phase = y % self.stride[0] * self.stride[1] + x % self.stride[1]
        for number, (_, _, taps) in enumerate(self.phases()):
            rows = (phase == number).nonzero().flatten()
            window = Window(self.size, self.size, taps, (1, 1), tuple(side - 1 for side in taps), (1, 1))
            index = rows_read((sample[rows], y[rows] // self.stride[0], x[rows] // self.stride[1]), window)
            found.append((rows.to(device), index.to(device)))
        return found


def phase_weights(weight, dtype, groups, geometry):
    """The weight (C, O/groups, kh, kw) as those of the phases: (O, C/groups, taps down, taps across) each, in ``dtype``.

    Made once for each state of the weight. Taps are reversed: the last reads the input position with the highest number.
    """

    def make():
        plain = weight.detach().to(dtype)
        by_output = plain.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        down, across = geometry.stride
        return [by_output[:, :, r::down, c::across].flip(2, 3).contiguous() for r, c, _ in geometry.phases()]

    return _parts.of(weight, make, dtype, groups, geometry.stride)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _geometry(x, weight, stride, padding, output_padding):
    size, kernel, stride, padding = tuple(x.shape[2:]), tuple(weight.shape[2:]), _pair(stride), _pair(padding)
    more = _pair(output_padding)
    out = tuple((size[i] - 1) * stride[i] - 2 * padding[i] + kernel[i] + more[i] for i in (0, 1))
    return Transposed(size, out, kernel, stride, padding)


@rule(torch.conv_transpose2d, F.conv_transpose2d)
def conv_transpose2d(
    forward, func, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    active = isinstance(input, ActiveTensor)
    args = (weight, bias, stride, padding, output_padding, groups, dilation)
    odd = active and (input.axes != _IMAGE or any(input.pad))
    if odd or input.dim() != 4 or isinstance(weight, ActiveTensor) or _pair(dilation) != (1, 1):
        return otherwise(forward, func, (input, *args), {})
    geometry = _geometry(input, weight, stride, padding, output_padding)
    if not _runs_sparse(forward, geometry) or forward.is_of_other_samples(input):
        plain = forward.densify(input)
        forward.count("conv", plain[:, 0].numel() * weight.numel())
        return func(plain, *args)
    if active and input.scale != 1:
        input = forward.at_level(input)
    rows, chosen = _rows(forward, input, weight, bias, groups, geometry, (func, args))
    out = ActiveTensor(rows, chosen, _IMAGE)
    return out if forward.is_sparse_level(*geometry.out_size) else forward.leave(out)


def _runs_sparse(forward, geometry):
    """One that enlarges counts as an up-sampling convolution to the policy."""
    if forward.is_dense_here():
        return False
    if max(geometry.stride) > 1:
        return min(geometry.size) >= forward.policy.upsample_min_source
    return forward.is_sparse_level(*geometry.size)


def _rows(forward, input, weight, bias, groups, geometry, whole):
    """Rows (n, O) of the output at its level's own set, and that set. ``whole`` is the call as the model made it."""
    key = forward.key("conv")
    chosen = forward.plan.level_set(*geometry.out_size)
    input, narrow, bias = cast(input, weight, bias)
    if isinstance(input, ActiveTensor):
        if input.source is None:  # shared by all convolutions of this map
            input.source = forward.keep_map(key, "conv_input", input.active, input.rows)
        source, batch = input.source, input.active.batch
        forward.reads(source, "reads", geometry)
    else:
        source, batch = full_rows(input, _IMAGE), input.shape[0]
    reads = forward.plan.reads_of(chosen, geometry)
    if chosen.full:
        func, (_, _, *rest) = whole
        image = source.to(narrow.dtype).view(batch, *geometry.size, -1).permute(0, 3, 1, 2)
        out = func(image, narrow, bias, *rest)
        forward.count("conv", len(source) * weight.numel())
        return out.permute(0, 2, 3, 1).reshape(-1, out.shape[1]), chosen
    made = narrow.new_empty(chosen.count, weight.shape[1] * groups)
    for (rows, index), part in zip(reads, phase_weights(weight, narrow.dtype, groups, geometry)):
        forward.count("conv", len(rows) * part.numel())
        ops.scatter_rows_(made, rows, _phase(source, index, part, bias, groups))
    return made, chosen


def _phase(source, index, part, bias, groups):
    """Rows of one phase: ``conv_rows``, or the bias where no tap reaches."""
    if index.shape[1]:
        return ops.conv_rows(source, index, part, bias, groups)
    nothing = part.new_zeros(len(index), part.shape[0])
    return nothing if bias is None else nothing + bias
