"""Up-sampling, padding and pooling: index arithmetic that the next convolution carries out."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.rules.fallback import otherwise
from sige.rules.registry import rule


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
    nearest = mode in ("nearest", "nearest-exact") and input.dim() == 4
    factor = _factor(input, size, scale_factor) if nearest else None
    if not isinstance(input, ActiveTensor):
        out = func(input, size, scale_factor, mode, **kwargs)
        if factor is not None:
            out._sige_scale = factor  # the policy treats the convolution behind it as an up-sampling one
        return out
    if factor is None or input.axes != ("b", "f", "h", "w") or input.pad != (0, 0, 0, 0):
        return otherwise(forward, func, (input, size, scale_factor, mode), kwargs)
    return ActiveTensor(input.rows, input.active, input.axes, input.source, input.scale * factor)


@rule(F.pad, torch._C._nn.pad)
def pad(forward, func, input, pad, mode="constant", value=None):
    simple = mode == "constant" and not value and len(pad) in (2, 4) and min(pad) >= 0
    if not isinstance(input, ActiveTensor) or not simple or input.axes != ("b", "f", "h", "w"):
        return otherwise(forward, func, (input, pad, mode, value), {})
    total = tuple(before + more for before, more in zip(input.pad, (*pad, 0, 0)))
    return ActiveTensor(input.rows, input.active, input.axes, input.source, input.scale, total)
