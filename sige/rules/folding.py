"""Heads folded into the batch, (B, heads, ., .) as (B * heads, ., .): put off, because positions of one sample come apart there."""

import dataclasses

import torch

from sige.active_tensor import ActiveTensor
from sige.delayed import delay
from sige.rules.fallback import otherwise


@dataclasses.dataclass
class Heads:
    """What a delayed tensor is: ``inner``, an active tensor (B, heads, ., .), with its first two dimensions as one."""

    inner: ActiveTensor


def fold(forward, x, shape):
    """The active tensor ``x`` viewed as ``shape``, a list (B * heads, ., .); None where that is not what the shape says."""
    if x.axes == ("b", "f", "p") and len(shape) == 3:
        x = _with_heads(x, *shape[:2])
    whole = x is not None and x.axes[:2] == ("b", "f") and len(x.axes) == 4 and sorted(x.axes[2:]) == ["f", "p"]
    return folded(forward, x) if whole and shape == _sides(x) else None


def folded(forward, inner):
    """An active tensor (B, heads, ., .) as (B * heads, ., .)."""

    def run(forward, inner):
        return otherwise(forward, torch.Tensor.reshape, (inner, *_sides(inner)), {})

    return delay(forward, Heads(inner), _sides(inner), inner.dtype, inner.device, (run, (inner,), {}))


def _sides(x):
    return [x.shape[0] * x.shape[1], *x.shape[2:]]


def _with_heads(x, folded, width):
    """(B, heads * width, positions) as (B, heads, width, positions) for ``folded`` = B * heads; None where these do not fit."""
    heads = folded // x.shape[0]
    if heads * x.shape[0] != folded or heads * width != x.shape[1]:
        return None
    return ActiveTensor(x.rows.reshape(-1, heads, width), x.active, ("b", "f", "f", "p"))
