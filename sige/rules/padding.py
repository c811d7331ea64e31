"""Padding: zeros around a map, which are left to the convolution that reads it, and constants beside features."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.rules.fallback import otherwise
from sige.rules.registry import rule


@rule(F.pad, torch._C._nn.pad)
def pad(forward, func, input, pad, mode="constant", value=None):
    if not isinstance(input, ActiveTensor) or mode != "constant":
        return otherwise(forward, func, (input, pad, mode, value), {})
    pairs = [tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)][::-1]  # in the order of the axes
    pairs = [(0, 0)] * (input.dim() - len(pairs)) + pairs
    if any(pad) and all(axis == "f" or pair == (0, 0) for axis, pair in zip(input.axes, pairs)):
        own = [pair for axis, pair in zip(input.axes, pairs) if axis == "f"]
        rows = F.pad(input.rows, [side for pair in own[::-1] for side in pair], value=value or 0)
        return input.with_rows(rows)
    if value or len(pad) not in (2, 4) or min(pad) < 0 or input.axes != ("b", "f", "h", "w"):
        return otherwise(forward, func, (input, pad, mode, value), {})
    total = tuple(before + more for before, more in zip(input.pad, (*pad, 0, 0)))
    return ActiveTensor(input.rows, input.active, input.axes, input.source, input.scale, total)
