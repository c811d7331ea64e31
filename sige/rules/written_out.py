"""Attention that a model writes out: what it does between the two products is noted, and then carried out by attention's own rule.

``softmax(q @ k.T * scale + mask) @ v`` in any of its usual spellings: ``matmul``, ``bmm``, ``baddbmm`` or ``einsum``; one head or many,
which may be folded into the batch; keys before queries or behind them; softmax in another dtype. Everything else has no rule here, and
what was put off is then carried out as the model wrote it.
"""

import dataclasses

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.delayed import Delayed, any_delayed, carried_out, delay
from sige.rules.attention import attention, finds_keys
from sige.rules.fallback import is_metadata, otherwise
from sige.rules.folding import Heads, folded
from sige.rules.linear_attention import Weights
from sige.rules.registry import RULES, registrar
from sige.rules.scores import Scores, is_autocast, mask_of, partner, what_of
from sige.rules.shape import split, transpose, view

T = torch.Tensor

_PRODUCTS = {torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, T.baddbmm, T.matmul, T.__matmul__, T.bmm}
_STEPS = {}
_step = registrar(_STEPS)  # a step returns None where it does not know


def follow(forward, func, args, kwargs):
    """What the model makes of delayed tensors. Returns (result, args, kwargs); without a result the arguments are there for whoever
    carries the call out."""
    if is_metadata(func) or not any_delayed(args) and not any_delayed(kwargs.values()):
        return None, args, kwargs
    if func in _PRODUCTS:  # their rules know delayed tensors
        return None, args, kwargs
    handler = _STEPS.get(func)
    out = None if handler is None else handler(forward, func, *args, **kwargs)
    return (out, args, kwargs) if out is not None else (None, *carried_out(forward, (args, kwargs)))


def _again(forward, x, func, args, kwargs, what, shape=None, dtype=None):
    """The delayed ``x`` after one more call."""
    known = RULES.get(func)

    def run(forward, *args, **kwargs):
        return otherwise(forward, func, args, kwargs) if known is None else known(forward, func, *args, **kwargs)

    return delay(forward, what, x.shape if shape is None else shape, dtype or x.dtype, x.device, (run, args, kwargs))


def _refolded(forward, x, func, args, kwargs, inner):
    """The folded heads ``x`` after one more call, which made ``inner`` of what was folded."""
    return _again(forward, x, func, args, kwargs, Heads(inner), folded(forward, inner).shape, inner.dtype)


@_step(torch.mul, T.mul, T.__mul__, T.__rmul__, torch.div, T.div, T.__truediv__)
def _scaled(forward, func, first, second, **kwargs):
    x, number = (first, second) if isinstance(first, Delayed) else (second, first)
    quotient = func in (torch.div, T.div, T.__truediv__)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or kwargs or quotient and x is second:
        return None
    heads, scores = what_of(x, Heads), what_of(x, Scores)
    if heads:
        inner = heads.inner.with_rows(func(heads.inner.rows, number))
        return _refolded(forward, x, func, (first, second), kwargs, inner)
    if scores is None or scores.soft or scores.mask is not None:
        return None
    scale = scores.scale / number if quotient else scores.scale * number
    return _again(forward, x, func, (first, second), kwargs, dataclasses.replace(scores, scale=scale))


@_step(torch.add, T.add, T.__add__, T.__radd__)
def _masked(forward, func, first, second, **kwargs):
    x, added = (first, second) if isinstance(first, Delayed) else (second, first)
    scores = what_of(x, Scores)
    if scores is None or scores.soft or scores.mask is not None or scores.turned or kwargs:
        return None
    mask = mask_of(scores, added)
    if mask is None:
        return None
    dtype = torch.promote_types(x.dtype, mask.dtype)
    return _again(forward, x, func, (first, second), kwargs, dataclasses.replace(scores, mask=mask), dtype=dtype)


@_step(F.softmax, torch.softmax, T.softmax)
def _softmax(forward, func, x, dim=None, _stacklevel=3, dtype=None):
    scores = what_of(x, Scores)
    dtype = _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype
    if scores is None or scores.soft or dim is None or dim % x.dim() < x.dim() - 2:
        return None
    if (dim % x.dim() == x.dim() - 1) == scores.turned:  # over what was taken for the queries
        if scores.mask is not None or not isinstance(scores.key, ActiveTensor):
            return None
        scores = dataclasses.replace(scores, query=scores.key, key=scores.query, turned=not scores.turned)
    given = {} if dtype is None else {"dtype": dtype}
    wide = torch.float32 if is_autocast(scores.query) else x.dtype
    return _again(forward, x, func, (x, dim), given, dataclasses.replace(scores, soft=True), dtype=dtype or wide)


@_step(T.float, T.half, T.bfloat16, T.to, T.type, T.type_as)
def _converted(forward, func, x, *args, **kwargs):
    named = {T.float: torch.float32, T.half: torch.float16, T.bfloat16: torch.bfloat16}.get(func)
    given = (*args, *kwargs.values())
    asked = given[0] if len(given) == 1 else None
    dtype = named if not given else asked.dtype if func is T.type_as else asked
    if not isinstance(x, Delayed) or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    heads = what_of(x, Heads)
    if heads:
        inner = heads.inner.with_rows(heads.inner.rows.to(dtype))
        return _refolded(forward, x, T.to, (x, dtype), {}, inner)
    scores = what_of(x, Scores)
    return None if scores is None else _again(forward, x, T.to, (x, dtype), {}, scores, dtype=dtype)


@_step(F.dropout, torch.dropout, T.contiguous, T.detach)
def _kept(forward, func, x, *args, **kwargs):
    given = (*args, *kwargs.values())
    dropped = func in (F.dropout, torch.dropout) and dict(zip(("p", "training"), args), **kwargs).get("training", True)
    known = isinstance(x, Delayed) and x.what is not None and not dropped
    if not known or func is T.contiguous and given:
        return None
    return _again(forward, x, func, (x, *args), kwargs, x.what)


@_step(torch.transpose, T.transpose, torch.swapaxes, T.swapaxes)
def _transposed(forward, func, x, first, second):
    if not isinstance(x, Delayed) or {first % x.dim(), second % x.dim()} != {x.dim() - 2, x.dim() - 1}:
        return None
    heads, scores, weights = (what_of(x, kind) for kind in (Heads, Scores, Weights))
    if weights:
        inner = transpose(forward, T.transpose, weights.inner, first, second)
        return _again(forward, x, func, (x, first, second), {}, Weights(inner), inner.shape)
    if heads:
        inner = transpose(forward, T.transpose, heads.inner, 2, 3)
        return _refolded(forward, x, func, (x, first, second), {}, inner)
    if scores is None:
        return None
    scores = dataclasses.replace(scores, turned=not scores.turned)
    return _again(forward, x, func, (x, first, second), {}, scores, (*x.shape[:-2], *scores.sides))


@_step(T.new_zeros, T.new_ones, T.new_full, T.new_empty, T.new_tensor)
def _new(forward, func, x, *args, **kwargs):
    """A tensor of the same type: it says nothing of the values."""
    return func(torch.empty(0, dtype=x.dtype, device=x.device), *args, **kwargs) if isinstance(x, Delayed) else None


@_step(T.mT.__get__)
def _matrix_transposed(forward, func, x):
    return _transposed(forward, T.transpose, x, -2, -1)


@_step(torch.permute, T.permute)
def permuted(forward, func, x, *dims):
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    if not isinstance(x, Delayed):
        return None
    order, last = [dim % x.dim() for dim in order], x.dim() - 1
    return _transposed(forward, T.transpose, x, -1, -2) if order == [*range(last - 1), last, last - 1] else None


@_step(T.view, T.reshape, torch.reshape)
def _viewed(forward, func, x, *shape, **kwargs):
    shape = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    if kwargs or not isinstance(x, Delayed) or not all(isinstance(side, int) for side in shape):
        return None
    if -1 in shape:
        place = shape.index(-1)
        shape[place] = x.numel() // max(1, -torch.Size(shape).numel())
    heads, scores = what_of(x, Heads), what_of(x, Scores)
    if heads:
        return x if shape == list(x.shape) else view(forward, T.reshape, heads.inner, shape)
    if scores is None or scores.layout == "single":
        return None
    whole = [*scores.query.shape[:2], *scores.sides]
    layout = {tuple(whole): "heads", (whole[0] * whole[1], *whole[2:]): "folded"}.get(tuple(shape))
    if layout is None or scores.mask is not None and layout != scores.layout:
        return None
    return _again(forward, x, func, (x, *shape), {}, dataclasses.replace(scores, layout=layout), shape)


@_step(torch.chunk, T.chunk, torch.split, T.split)
def _parted(forward, func, x, size, dim=0):
    """The parts of heads that hold queries, keys and values."""
    heads = what_of(x, Heads)
    if heads is None or heads.inner.axes[dim % 3 + 1] != "f" or dim % 3 == 0:
        return None
    parts = split(forward, func, heads.inner, size, dim % 3 + 1)
    made, start = [], 0
    for part in parts:
        length = part.shape[dim % 3 + 1]
        made.append(_refolded(forward, x, T.narrow, (x, dim, start, length), {}, part))
        start += length
    return tuple(made)


@_step(F.scaled_dot_product_attention)
def _fused(forward, func, query, key, value, attn_mask=None, **kwargs):
    """The operator itself on heads that are folded into the batch."""
    heads = what_of(query, Heads)
    if heads is None or attn_mask is not None:
        return None
    parts = [heads.inner, *(partner(forward, x, "folded", heads.inner) for x in (key, value))]
    if any(x is None or isinstance(x, ActiveTensor) and x.axes != ("b", "f", "p", "f") for x in parts):
        return None
    if isinstance(parts[1], ActiveTensor) and not finds_keys(forward, *parts[1:]):
        return None
    out = attention(forward, func, *parts, **kwargs)
    return folded(forward, out) if isinstance(out, ActiveTensor) else out.flatten(0, 1)
