"""Attention's two products where a model writes it out: the first is put off, the second ends it."""

import dataclasses

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.delayed import Delayed, delay
from sige.rules.attention import attention, finds_keys
from sige.rules.features import squeeze
from sige.rules.folding import Heads, folded
from sige.rules.linear_attention import linear_product
from sige.rules.scores import Scores, cast_type, mask_of, operand, partner, what_of
from sige.rules.shape import permute, transpose
from sige.rules.written_out import permuted

T = torch.Tensor


def product(forward, first, second, run):
    """``first @ second`` where that is one of attention's two products: queries by keys is put off, the other one ends it; else None.

    run: called with (forward, first, second), it multiplies them whatever they are.
    """
    if forward.is_dense_here() or not first.is_floating_point():
        return None
    of_first, of_second = what_of(first, Scores), what_of(second, Scores)
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
    ended = what_of(first, Scores) or what_of(second, Scores)
    scores = None if ended else product(forward, first, second, run)
    what = what_of(scores, Scores)
    mask = mask_of(what, added) if what and beta == 1 else None
    if not what or beta not in (0, 1) or beta == 1 and mask is None:
        return None
    what = dataclasses.replace(what, scale=alpha, mask=mask)
    call = (_paying(run, what), (added, first, second), {})
    return delay(forward, what, scores.shape, scores.dtype, scores.device, call)


def einsum_product(forward, equation, first, second, run):
    """An einsum of two operands that is a product of attention, with a softmax or without; None otherwise."""
    letters = _letters(equation, first.dim(), second.dim())
    if letters is None:
        return None
    of_first, of_second, of_out = letters
    both = [letter for letter in of_first if letter in of_second]
    batch, summed = [x for x in both if x in of_out], [x for x in both if x not in of_out]
    rows, columns = ([x for x in of if x not in both] for of in (of_first, of_second))
    if [len(summed), len(rows), len(columns)] != [1, 1, 1] or sorted(of_out) != sorted(batch + rows + columns):
        return None
    folds = any(what_of(x, Heads) or getattr(what_of(x, Scores), "layout", None) == "folded" for x in (first, second))
    if folds and of_out not in ("".join(batch + rows + columns), "".join(batch + columns + rows)):
        return None
    first = _in_order(forward, first, of_first, batch + rows + summed)
    second = _in_order(forward, second, of_second, batch + summed + columns)
    if first is None or second is None:
        return None
    out = product(forward, first, second, run)
    out = linear_product(forward, first, second) if out is None else out
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
        return permuted(forward, T.permute, x, order)
    return permute(forward, T.permute, x, order) if isinstance(x, ActiveTensor) else x.permute(order)


def _scores(forward, first, second, run):
    query, layout = operand(forward, first)
    if query is None or query.axes != ("b", "f", "p", "f"):
        return None
    key = partner(forward, second, layout, query)
    if (
        key is None
        or isinstance(key, ActiveTensor)
        and key.axes != ("b", "f", "f", "p")
        or cast_type(key) != cast_type(query)
    ):
        return None
    key = transpose(forward, T.transpose, key, 2, 3) if isinstance(key, ActiveTensor) else key.transpose(2, 3)
    if key.shape[3] != query.shape[3]:
        return None
    what = Scores(query, key, layout=layout)
    shape = (*first.shape[:-1], key.shape[2])
    return delay(forward, what, shape, cast_type(first), first.device, (_paying(run, what), (first, second), {}))


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


def _attended(forward, scores, value, turned=False):
    """The second product: attention itself, in the layout of the scores."""
    query, key = scores.query, scores.key
    value = partner(forward, value, scores.layout, query)
    plain = not isinstance(value, ActiveTensor)
    if value is None or plain != (not isinstance(key, ActiveTensor)):
        return None
    if turned:
        value = value.transpose(2, 3) if plain else transpose(forward, T.transpose, value, 2, 3)
    if value.shape[2] != key.shape[2] or not plain and value.axes != ("b", "f", "p", "f"):
        return None
    if not plain and not finds_keys(forward, key, value):
        return None
    dtype = cast_type(value)
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
