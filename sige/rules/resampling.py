"""Resampling and padding.

Nearest up-sampling and zero padding are left outstanding for the next convolution to carry out. The others compute the output
positions of the coarser or finer level from the rows that each of them reads.
"""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_rows, rows_of_map
from sige.kernels import ops
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.windows import Window

_IMAGE = ("b", "f", "h", "w")


def _factor(x, size, scale_factor):
    """The whole factor by which both sides grow, or None."""
    if scale_factor is not None:
        factors = {
            float(value) for value in (scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,))
        }
    else:
        size = (size, size) if isinstance(size, int) else tuple(size)
        factors = {size[0] / x.shape[-2], size[1] / x.shape[-1]}
    factor = factors.pop()
    return int(factor) if not factors and factor >= 1 and factor == int(factor) else None


@rule(F.interpolate)
def interpolate(forward, func, input, size=None, scale_factor=None, mode="nearest", **kwargs):
    image = input.dim() == 4
    factor = _factor(input, size, scale_factor) if image and mode in ("nearest", "nearest-exact") else None
    if not isinstance(input, ActiveTensor):
        if image and forward.is_input_map(input) and mode == "nearest" and not kwargs.get("antialias"):
            return _input_map(forward, func, input, size, scale_factor, mode, factor, kwargs)
        return _dense(func, input, size, scale_factor, mode, factor, kwargs)
    if input.axes != _IMAGE or any(input.pad):
        return otherwise(forward, func, (input, size, scale_factor, mode), kwargs)
    if factor is not None:
        return ActiveTensor(input.rows, input.active, input.axes, input.source, input.scale * factor)
    factor = _factor(input, size, scale_factor)
    if (
        mode != "bilinear"
        or factor is None
        or kwargs.get("align_corners")
        or kwargs.get("antialias")
        or input.scale != 1
    ):
        return otherwise(forward, func, (input, size, scale_factor, mode), kwargs)
    return _bilinear(forward, input, factor)


def _dense(func, input, size, scale_factor, mode, factor, kwargs):
    out = func(input, size, scale_factor, mode, **kwargs)
    if factor is not None:
        out._sige_scale = factor  # the policy treats the convolution behind it as an up-sampling one
    return out


def _target(input, size, scale_factor):
    if size is not None:
        return (size, size) if isinstance(size, int) else tuple(size)
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
    return tuple(int(side * factor) for side, factor in zip(input.shape[2:], factors))


def _input_map(forward, func, input, size, scale_factor, mode, factor, kwargs):
    """An input of the model, such as a label map, brought to a level's resolution: only the level's active positions of it."""
    height, width = _target(input, size, scale_factor)
    steps = (input.shape[2] // height, input.shape[3] // width) if height and width else (0, 0)
    whole = steps[0] >= 1 and (height * steps[0], width * steps[1]) == tuple(input.shape[2:])
    if not whole or forward.is_dense_here() or not forward.is_sparse_level(height, width):
        return _dense(func, input, size, scale_factor, mode, factor, kwargs)
    key = (id(input), height, width)
    if key not in forward.resized:  # made once for all layers of the level; the tensor kept keeps its id its own
        level = forward.plan.level_set(height, width)
        if level.full:
            rows = full_rows(input[:, :, :: steps[0], :: steps[1]], _IMAGE)
        else:
            picked = Window(tuple(input.shape[2:]), (height, width), (1, 1), steps, (0, 0), (1, 1))
            places = forward.plan.window_rows(level, picked)[: level.count]  # what hangs over a border reads nothing
            rows = rows_of_map(input, places[:, 0])
        forward.resized[key] = (ActiveTensor(rows, level, _IMAGE), input)
    return forward.resized[key][0]


def source_of(forward, x, operator):
    """The remembered map (B*H*W, C) behind ``x``, brought up to date."""
    if x.source is None:
        x.source = forward.keep_map(forward.key(operator), "resampled", x.active, x.rows)
    forward.reads(x.source, "all")
    return x.source


def mixed(source, index, weight, dtype):
    """Rows ``sum_k weight[k] * source[index[:, k]]``: index (n, k) int64, weight (n, k) or (k,)."""
    rows = ops.gather_rows(source, index.flatten()).to(dtype).view(*index.shape, source.shape[1])
    return (rows * weight.to(dtype)[..., None]).sum(1)


def _places(active):
    area = active.height * active.width
    positions = active.positions
    return positions // area, positions // active.width % active.height, positions % active.width


def _bilinear(forward, x, factor):
    source = source_of(forward, x, "bilinear")
    level = forward.plan.level_set(x.active.height * factor, x.active.width * factor)
    sample, *place = _places(level)
    ends = []
    for axis, side in ((0, x.active.height), (1, x.active.width)):
        at = ((place[axis].to(torch.float32) + 0.5) / factor - 0.5).clamp(min=0)
        first = at.floor().long()
        ends.append((first, (first + 1).clamp(max=side - 1), at - first))
    (top, bottom, down), (left, right, across) = ends
    row = lambda y, x_: (sample * x.active.height + y) * x.active.width + x_  # noqa: E731
    index = torch.stack([row(top, left), row(top, right), row(bottom, left), row(bottom, right)], 1)
    weight = torch.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], 1)
    return ActiveTensor(mixed(source, index, weight, x.dtype), level, x.axes)
