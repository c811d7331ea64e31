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
from sige.rules.features import squeeze, unsqueeze
from sige.rules.folding import Heads, folded
from sige.rules.registry import RULES
from sige.rules.shape import permute, split, transpose, view

T = torch.Tensor


@dataclasses.dataclass
class Scores:
    """Products of queries and keys on the way to a softmax, or behind it.

    query: active tensor with axes (b, heads, p, f).   key: the like, or a plain tensor (B, heads, keys, width).
    scale, mask: as in ``scaled_dot_product_attention``.   soft: whether the softmax has been.
    turned: whether keys stand before queries.   layout: ``heads`` (B, heads, ., .), ``folded`` (B * heads, ., .), ``single`` (B, ., .).
    paid: of scores made by one product, filled once that is counted: a model that goes on with them twice multiplies once.
    """

    query: ActiveTensor
    key: torch.Tensor
    scale: float = 1.0
    mask: torch.Tensor | None = None
    soft: bool = False
    turned: bool = False
    layout: str = "heads"
    paid: list = dataclasses.field(default_factory=list)

    @property
    def sides(self):
        """The last two sides."""
        sides = (self.query.shape[2], self.key.shape[2])
        return sides[::-1] if self.turned else sides


_PRODUCTS = {torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, T.matmul, T.__matmul__, T.bmm}
_STEPS = {}


def _step(*functions):
    """Register what is made of a delayed tensor by torch ``functions``. A step returns None where it does not know."""

    def register(handler):
        for function in functions:
            _STEPS[function] = handler
        return handler

    return register


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


def _what(x, kind):
    """What is known of a tensor that may be a delayed one of a ``kind``; None otherwise."""
    return x.what if isinstance(x, Delayed) and isinstance(x.what, kind) else None


def _again(forward, x, func, args, kwargs, what, shape=None, dtype=None):
    """The delayed ``x`` after one more call."""
    known = RULES.get(func)

    def run(forward, *args, **kwargs):
        return otherwise(forward, func, args, kwargs) if known is None else known(forward, func, *args, **kwargs)

    return delay(forward, what, x.shape if shape is None else shape, dtype or x.dtype, x.device, (run, args, kwargs))


def _refolded(forward, x, func, args, kwargs, inner):
    """The folded heads ``x`` after one more call, which made ``inner`` of what was folded."""
    return _again(forward, x, func, args, kwargs, Heads(inner), folded(forward, inner).shape, inner.dtype)


# -- the two products ----------------------------------------------------------------------------------------------------


def product(forward, first, second, run):
    """``first @ second`` where that is one of attention's two products: queries by keys is put off, the other one ends it; else None.

    run: called with (forward, first, second), it multiplies them whatever they are.
    """
    if forward.is_dense_here() or not first.is_floating_point():
        return None
    of_first, of_second = _what(first, Scores), _what(second, Scores)
    if of_first is None and of_second is None:
        return _scores(forward, first, second, run)
    if of_first and of_second:
        return None
    if of_first and of_first.soft and not of_first.turned:
        return _attended(forward, of_first, second)
    if of_second and of_second.soft and of_second.turned:
        return _attended(forward, of_second, first, turned=True)
    return None


def added_product(forward, added, first, second, beta, alpha, run):
    """``beta * added + alpha * first @ second`` where that is queries by keys, with a mask or without; else None."""
    scores = product(forward, first, second, run)
    what = _what(scores, Scores)
    mask = _mask(what, added) if what and beta == 1 else None
    if not what or beta not in (0, 1) or beta == 1 and mask is None:
        return None
    what = dataclasses.replace(what, scale=alpha, mask=mask)
    call = (_paying(run, what), (added, first, second), {})
    return delay(forward, what, scores.shape, scores.dtype, scores.device, call)


def einsum_product(forward, equation, first, second, run):
    """An einsum of two operands that is one of attention's two products; None otherwise."""
    letters = _letters(equation, first.dim(), second.dim())
    if letters is None:
        return None
    of_first, of_second, of_out = letters
    both = [letter for letter in of_first if letter in of_second]
    batch, summed = [x for x in both if x in of_out], [x for x in both if x not in of_out]
    rows, columns = ([x for x in of if x not in both] for of in (of_first, of_second))
    if [len(summed), len(rows), len(columns)] != [1, 1, 1] or sorted(of_out) != sorted(batch + rows + columns):
        return None
    folds = any(_what(x, Heads) or getattr(_what(x, Scores), "layout", None) == "folded" for x in (first, second))
    if folds and of_out not in ("".join(batch + rows + columns), "".join(batch + columns + rows)):
        return None
    first = _in_order(forward, first, of_first, batch + rows + summed)
    second = _in_order(forward, second, of_second, batch + summed + columns)
    out = None if first is None or second is None else product(forward, first, second, run)
    return None if out is None else _in_order(forward, out, batch + rows + columns, of_out)


def _letters(equation, *dims):
    """The letters of the two operands and of the result; None for an equation that is more than a product."""
    operands, arrow, out = equation.replace(" ", "").partition("->")
    parts = [*operands.split(","), out]
    plain = arrow and len(parts) == 3 and all(x.isalpha() and len(set(x)) == len(x) for x in parts)
    return parts if plain and [len(x) for x in parts[:2]] == list(dims) else None


def _in_order(forward, x, letters, wanted):
    """``x``, whose dimensions are ``letters``, with them in the ``wanted`` order; None where a delayed tensor cannot be turned so."""
    order = [list(letters).index(letter) for letter in wanted]
    if order == list(range(len(order))):
        return x
    if isinstance(x, Delayed):
        return _permuted(forward, T.permute, x, order)
    return permute(forward, T.permute, x, order) if isinstance(x, ActiveTensor) else x.permute(order)


def _scores(forward, first, second, run):
    query, layout = _four(forward, first)
    if query is None or query.axes != ("b", "f", "p", "f"):
        return None
    key = _partner(forward, second, layout, query)
    if key is None or isinstance(key, ActiveTensor) and key.axes != ("b", "f", "f", "p") or _cast(key) != _cast(query):
        return None
    key = transpose(forward, T.transpose, key, 2, 3) if isinstance(key, ActiveTensor) else key.transpose(2, 3)
    if key.shape[3] != query.shape[3]:
        return None
    what = Scores(query, key, layout=layout)
    shape = (*first.shape[:-1], key.shape[2])
    return delay(forward, what, shape, _cast(first), first.device, (_paying(run, what), (first, second), {}))


def _cast(x):
    """The type in which a product takes ``x``: autocast's where that is on."""
    return torch.get_autocast_dtype(x.device.type) if _autocast(x) else x.dtype


def _autocast(x):
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _paying(run, scores):
    """``run``, which multiplies queries by keys and counts it, for these ``scores``."""

    def multiplied(forward, *operands):
        out = run(forward, *operands)
        _pay(forward, scores)
        return out

    return multiplied


def _pay(forward, scores):
    """The product of queries and keys was counted: in a recording, which says what the plain model costs, not a second time."""
    if forward.recording and scores.paid:
        forward.count("attention", -scores.query.shape.numel() * scores.key.shape[2])
    scores.paid.append(True)


def _four(forward, x):
    """A product's operand as (B, heads, ., .) and its layout; (None, None) where it is none with positions."""
    heads = _what(x, Heads)
    if heads:
        return heads.inner, "folded"
    if not isinstance(x, ActiveTensor) or not x.settled or sorted(x.axes[-2:]) != ["f", "p"] or x.axes[0] != "b":
        return None, None
    if x.dim() == 3:
        return unsqueeze(forward, torch.unsqueeze, x, 1), "single"
    return (x, "heads") if x.dim() == 4 and x.axes[1] == "f" else (None, None)


def _partner(forward, x, layout, query):
    """The other operand in the layout of the first, as (B, heads, ., .); None where it has another."""
    if isinstance(x, (Delayed, ActiveTensor)):
        found, own = _four(forward, x)
        return found if own == layout and found.shape[:2] == query.shape[:2] else None
    dims = 4 if layout == "heads" else 3
    if x.dim() != dims or x.shape[0] != (query.shape[0] * query.shape[1] if layout == "folded" else query.shape[0]):
        return None
    if layout == "folded":
        return x.unflatten(0, tuple(query.shape[:2]))
    return x.unsqueeze(1) if layout == "single" else x if x.shape[1] == query.shape[1] else None


def _attended(forward, scores, value, turned=False):
    """The second product: attention itself, in the layout of the scores."""
    query, key = scores.query, scores.key
    value = _partner(forward, value, scores.layout, query)
    plain = not isinstance(value, ActiveTensor)
    if value is None or plain != (not isinstance(key, ActiveTensor)):
        return None
    if turned:
        value = value.transpose(2, 3) if plain else transpose(forward, T.transpose, value, 2, 3)
    if value.shape[2] != key.shape[2] or not plain and value.axes != ("b", "f", "p", "f"):
        return None
    if not plain and not finds_keys(forward, key, value):
        return None
    dtype = _cast(value)
    if value.dtype != query.dtype:
        value = value.to(query.dtype) if plain else value.with_rows(value.rows.to(query.dtype))
    out = attention(forward, F.scaled_dot_product_attention, query, key, value, scores.mask, scale=scores.scale)
    _pay(forward, scores)
    if not isinstance(out, ActiveTensor):
        out = forward.activate(out, query.axes, query.active)
    out = out if out.dtype == dtype else out.with_rows(out.rows.to(dtype))
    out = transpose(forward, T.transpose, out, 2, 3) if turned else out
    if scores.layout == "single":
        return squeeze(forward, torch.squeeze, out, 1)
    return folded(forward, out) if scores.layout == "folded" else out


@_step(F.scaled_dot_product_attention)
def _fused(forward, func, query, key, value, attn_mask=None, **kwargs):
    """The operator itself on heads that are folded into the batch."""
    heads = _what(query, Heads)
    if heads is None or attn_mask is not None:
        return None
    parts = [heads.inner, *(_partner(forward, x, "folded", heads.inner) for x in (key, value))]
    if any(x is None or isinstance(x, ActiveTensor) and x.axes != ("b", "f", "p", "f") for x in parts):
        return None
    if isinstance(parts[1], ActiveTensor) and not finds_keys(forward, *parts[1:]):
        return None
    out = attention(forward, func, *parts, **kwargs)
    return folded(forward, out) if isinstance(out, ActiveTensor) else out.flatten(0, 1)


# -- between them --------------------------------------------------------------------------------------------------------


@_step(torch.mul, T.mul, T.__mul__, T.__rmul__, torch.div, T.div, T.__truediv__)
def _scaled(forward, func, first, second, **kwargs):
    x, number = (first, second) if isinstance(first, Delayed) else (second, first)
    quotient = func in (torch.div, T.div, T.__truediv__)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or kwargs or quotient and x is second:
        return None
    heads, scores = _what(x, Heads), _what(x, Scores)
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
    scores = _what(x, Scores)
    if scores is None or scores.soft or scores.mask is not None or scores.turned or kwargs:
        return None
    mask = _mask(scores, added)
    if mask is None:
        return None
    dtype = torch.promote_types(x.dtype, mask.dtype)
    return _again(forward, x, func, (first, second), kwargs, dataclasses.replace(scores, mask=mask), dtype=dtype)


def _mask(scores, added):
    """What is added to scores as attention's mask (B or 1, heads or 1, queries or 1, keys); None where it cannot be one."""
    sides = (*scores.query.shape[:3], scores.key.shape[2])
    alike = type(added) in (T, torch.nn.Parameter) and added.is_floating_point()
    if not alike or added.dtype != scores.query.dtype and not _autocast(added):
        return None
    if scores.layout != "heads":
        if added.dim() != 3:
            return None
        each = scores.layout == "folded" and added.shape[0] != 1
        added = added.unflatten(0, sides[:2]) if each and added.shape[0] == sides[0] * sides[1] else added.unsqueeze(1)
    added = added.reshape((1,) * (4 - added.dim()) + tuple(added.shape)) if added.dim() < 4 else added
    fits = added.dim() == 4 and added.shape[3] == sides[3] and all(a in (1, b) for a, b in zip(added.shape, sides))
    return added if fits else None


@_step(F.softmax, torch.softmax, T.softmax)
def _softmax(forward, func, x, dim=None, _stacklevel=3, dtype=None):
    scores = _what(x, Scores)
    dtype = _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype
    if scores is None or scores.soft or dim is None or dim % x.dim() < x.dim() - 2:
        return None
    if (dim % x.dim() == x.dim() - 1) == scores.turned:  # over what was taken for the queries
        if scores.mask is not None or not isinstance(scores.key, ActiveTensor):
            return None
        scores = dataclasses.replace(scores, query=scores.key, key=scores.query, turned=not scores.turned)
    given = {} if dtype is None else {"dtype": dtype}
    wide = torch.float32 if _autocast(scores.query) else x.dtype
    return _again(forward, x, func, (x, dim), given, dataclasses.replace(scores, soft=True), dtype=dtype or wide)


@_step(T.float, T.half, T.bfloat16, T.to, T.type, T.type_as)
def _converted(forward, func, x, *args, **kwargs):
    named = {T.float: torch.float32, T.half: torch.float16, T.bfloat16: torch.bfloat16}.get(func)
    given = (*args, *kwargs.values())
    asked = given[0] if len(given) == 1 else None
    dtype = named if not given else asked.dtype if func is T.type_as else asked
    if not isinstance(x, Delayed) or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    heads = _what(x, Heads)
    if heads:
        inner = heads.inner.with_rows(heads.inner.rows.to(dtype))
        return _refolded(forward, x, T.to, (x, dtype), {}, inner)
    scores = _what(x, Scores)
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
    heads, scores = _what(x, Heads), _what(x, Scores)
    if heads:
        inner = transpose(forward, T.transpose, heads.inner, 2, 3)
        return _refolded(forward, x, func, (x, first, second), {}, inner)
    if scores is None:
        return None
    scores = dataclasses.replace(scores, turned=not scores.turned)
    return _again(forward, x, func, (x, first, second), {}, scores, (*x.shape[:-2], *scores.sides))


@_step(T.mT.__get__)
def _matrix_transposed(forward, func, x):
    return _transposed(forward, T.transpose, x, -2, -1)


@_step(torch.permute, T.permute)
def _permuted(forward, func, x, *dims):
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
    heads, scores = _what(x, Heads), _what(x, Scores)
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
    heads = _what(x, Heads)
    if heads is None or heads.inner.axes[dim % 3 + 1] != "f" or dim % 3 == 0:
        return None
    parts = split(forward, func, heads.inner, size, dim % 3 + 1)
    made, start = [], 0
    for part in parts:
        length = part.shape[dim % 3 + 1]
        made.append(_refolded(forward, x, T.narrow, (x, dim, start, length), {}, part))
        start += length
    return tuple(made)
