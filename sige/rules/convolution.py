"""Convolution: scatter the rows into the remembered input map, convolve at the active positions."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_rows
from sige.kernels import ops
from sige.kernels.kept import Kept
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.windows import Window

_IMAGE = ("b", "f", "h", "w")
_flat = Kept()  # weights of one tap as matrices


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _padding(padding, kernel, dilation, stride):
    """(left, right, top, bottom) from conv2d's ``padding`` argument."""
    if padding == "same":
        total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        return total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2
    vertical, horizontal = (0, 0) if padding == "valid" else _pair(padding)
    return horizontal, horizontal, vertical, vertical


def _window(x, scale, extra, weight, stride, padding, dilation):
    """The convolution's geometry on an input of logical shape ``x.shape`` of which ``extra`` is padding not yet applied."""
    kernel, stride, dilation = tuple(weight.shape[2:]), _pair(stride), _pair(dilation)
    left, right, top, bottom = _padding(padding, kernel, dilation, stride)
    height, width = x.shape[2] - extra[2] - extra[3], x.shape[3] - extra[0] - extra[1]
    total = (x.shape[2] + top + bottom, x.shape[3] + left + right)
    out = tuple((total[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1))
    before = (top + extra[2], left + extra[0])
    return Window((height, width), out, kernel, stride, before, dilation, scale)


@rule(torch.conv2d, F.conv2d)
def conv2d(forward, func, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    active = isinstance(input, ActiveTensor)
    if input.dim() != 4 or isinstance(weight, ActiveTensor) or (active and input.axes != _IMAGE):
        result = otherwise(forward, func, (input, weight, bias, stride, padding, dilation, groups), {})
        forward.count("conv", result.shape.numel() // weight.shape[0] * weight.shape.numel())
        return result
    input, weight, bias = cast(input, weight, bias)
    scale = input.scale if active else getattr(input, "_sige_scale", 1)
    window = _window(
        input, input.scale if active else 1, input.pad if active else (0,) * 4, weight, stride, padding, dilation
    )
    if not _runs_sparse(forward, window, scale) or forward.is_of_other_samples(input):
        return _dense(forward, func, input, weight, bias, stride, padding, dilation, groups)
    return _sparse(forward, input, weight, bias, groups, window)


@rule(torch.conv1d, F.conv1d)
def conv1d(forward, func, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Of one tap, on a map's positions (B, C, H*W): a linear layer on channels. Others mix rows of the map and have no rule."""
    plain = weight.shape[-1] == 1 and groups == 1 and stride in (1, (1,)) and padding in (0, (0,), "valid", "same")
    of_tokens = isinstance(input, ActiveTensor) and input.axes == ("b", "f", "p") and not forward.is_dense_here()
    if not plain or not of_tokens or isinstance(weight, ActiveTensor):
        return otherwise(forward, func, (input, weight, bias, stride, padding, dilation, groups), {})
    input, weight, bias = cast(input, weight, bias)
    forward.count("conv", input.active.count * weight.numel())
    flat = _flat.of(weight, lambda: weight.detach().flatten(1))
    return input.with_rows(ops.linear_rows(input.rows, flat, bias))


def _runs_sparse(forward, window, scale):
    if forward.is_dense_here():
        return False
    if scale != 1:
        return min(window.size) // scale >= forward.policy.upsample_min_source
    return forward.is_sparse_level(*window.size)


def _dense(forward, func, input, weight, bias, stride, padding, dilation, groups):
    plain = forward.densify(input)
    window = _window(plain, 1, (0, 0, 0, 0), weight, stride, padding, dilation)
    forward.count("conv", plain.shape[0] * window.out_size[0] * window.out_size[1] * weight.numel())
    if forward.recording or padding == "same":
        return func(plain, weight, bias, stride, padding, dilation, groups)
    return ops.conv_map(plain, weight, bias, window.stride, window.padding, window.dilation, groups)


def _sparse(forward, input, weight, bias, groups, window):
    key = forward.key("conv")
    chosen = forward.plan.conv_set(window, weight.shape)
    forward.count("conv", (chosen.count if window.pointwise else chosen.computed) * weight.numel())
    if window.pointwise:
        rows = _pointwise(forward, input, weight, bias, groups, chosen)
    else:
        rows = _spatial(forward, key, input, weight, bias, groups, window, chosen)
    out = ActiveTensor(rows, chosen, _IMAGE)
    return out if forward.is_sparse_level(*window.out_size) else forward.leave(out)


def _pointwise(forward, input, weight, bias, groups, chosen):
    if not isinstance(input, ActiveTensor):
        input = forward.activate(input, _IMAGE, chosen)
    rows = forward.resite(input, chosen)
    if groups == 1:
        return ops.linear_rows(rows, weight, bias)
    identity = torch.arange(len(rows), device=rows.device)[:, None]
    return ops.conv_rows(rows, identity, weight, bias, groups)


def _spatial(forward, key, input, weight, bias, groups, window, chosen):
    if isinstance(input, ActiveTensor):
        if input.source is None:  # shared by all convolutions of this map
            input.source = forward.keep_map(key, "conv_input", input.active, input.rows)
        source, batch, view = input.source, input.active.batch, input.active
        forward.reads(source, "conv", window)
    else:
        source, batch, view = full_rows(input, _IMAGE), input.shape[0], None
    if not chosen.full:
        index, tile = forward.plan.reads(chosen, window)
        if tile:
            return ops.conv_tiles(source, index, tile, weight, bias, groups)
        return ops.conv_rows(source, index, weight, bias, groups, _tiling(chosen, window))[: chosen.count]
    height, width = (view.height, view.width) if view is not None else window.size
    image = source.to(weight.dtype).view(batch, height, width, -1).permute(0, 3, 1, 2)
    out = _full(image, weight, bias, groups, window, F.conv2d if forward.recording else ops.conv_map)
    return out.permute(0, 2, 3, 1).reshape(-1, out.shape[1])


def _tiling(chosen, window):
    """``tiling`` of :func:`sige.kernels.ops.conv_rows`, where a convolution reads whole tiles of maps of its own size."""
    around = tuple(side // 2 for side in window.kernel)
    plain = window.stride == window.dilation == (1, 1) and window.scale == 1 and window.size == window.out_size
    if not plain or window.padding != around or chosen.tile is None or chosen.overhang is not None:
        return None
    return *window.size, *chosen.tile


def _full(image, weight, bias, groups, window, convolve):
    """The whole convolution of an image (B, C, H, W), channels-last, under the window's geometry.

    ``convolve`` is the operator: the plain one while recording, for which packing weights does not pay.
    """
    if window.scale != 1:
        image = F.interpolate(image, scale_factor=float(window.scale), mode="nearest")
    # what the padding must be below and to the right for the output to have the size it has
    after = [
        (window.out_size[axis] - 1) * window.stride[axis]
        + window.dilation[axis] * (window.kernel[axis] - 1)
        + 1
        - window.size[axis]
        - window.padding[axis]
        for axis in (0, 1)
    ]
    if after[0] == window.padding[0] and after[1] == window.padding[1]:
        return convolve(image, weight, bias, window.stride, window.padding, window.dilation, groups)
    image = F.pad(image, (window.padding[1], after[1], window.padding[0], after[0]))
    return convolve(image, weight, bias, window.stride, (0, 0), window.dilation, groups)
