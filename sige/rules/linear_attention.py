"""Attention without a softmax: keys and values of all positions make one small matrix, which queries are multiplied by.

    sums = values @ keys (over all positions),   out = sums @ queries

An edit takes the products of its rows' old keys and values out of the remembered sums and puts the new ones in, so that the sums are
those of the whole edited map, at a cost proportional to the edit. Queries are those of the active positions, as in any attention.

Keys may go through a softmax over all positions before. It is put off until the product: e^(key - c) is what is summed, alone and
with the values, about the recorded largest key c of each channel.
"""

import dataclasses

import torch

from sige.active_tensor import ActiveTensor
from sige.delayed import Delayed, delay
from sige.kernels import backends
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.remembered_sums import followed, is_whole


@dataclasses.dataclass
class Weights:
    """What a delayed tensor is: the softmax of ``inner`` over its positions."""

    inner: ActiveTensor


def softmax_over_positions(forward, func, x, dim, args, kwargs):
    """A softmax of an active tensor over all positions: put off, for the product that may come; not one in another dtype."""
    given = [value for name, value in kwargs.items() if name != "_stacklevel" and value is not None]

    def run(forward, x):
        return otherwise(forward, func, (x, dim, *args), kwargs)

    known = not forward.is_dense_here() and not args and not given and x.settled and x.axes[0] == "b"
    return delay(forward, Weights(x), x.shape, x.dtype, x.device, (run, (x,), {})) if known else run(forward, x)


def _is_weights(x):
    return isinstance(x, Delayed) and isinstance(x.what, Weights)


def linear_product(forward, first, second):
    """``first @ second`` where positions are what is summed over (a plain tensor), or where one of the two is plain and features are
    (an active tensor); None otherwise."""
    soft = [_is_weights(x) for x in (first, second)]
    first, second = (x.what.inner if is_soft else x for x, is_soft in zip((first, second), soft))
    active = [isinstance(x, ActiveTensor) for x in (first, second)]
    if not any(active) or forward.is_dense_here() or any(isinstance(x, Delayed) for x in (first, second)):
        return None
    if first.dim() < 2 or second.dim() < 2 or not all(x.is_floating_point() for x in (first, second)):
        return None
    first, second = cast(first, second)
    if first.dtype != second.dtype or any(soft) and (all(soft) or not all(active)):
        return None
    if all(active):
        return _over_positions(forward, first, second, soft)
    if active[0]:
        return _over_features(forward, first, second, ("p", "f"))
    return _over_features(forward, second, first.transpose(-1, -2), ("f", "p"))


def _over_features(forward, x, matrix, last):
    """Rows of ``x``, whose axes end with ``last``, times a plain ``matrix`` (d, e) or (B or 1, [heads or 1,] d, e)."""
    if not x.settled or x.axes[0] != "b":
        return None
    if matrix.dim() == 2 and (x.axes[-1] == "f" if last[-1] == "f" else x.axes[-2:] == last):
        if x.shape[-1 if last[-1] == "f" else -2] != matrix.shape[0]:
            return None
        forward.count("linear", x.rows.numel() * matrix.shape[1])
        return x.with_rows(x.rows @ matrix)
    heads = _heads(x, last)
    if heads is None or matrix.dim() != x.dim():
        return None
    fits = matrix.shape[0] in (1, x.shape[0]) and (not heads or matrix.shape[1] in (1, x.shape[1]))
    if not fits or matrix.shape[-2] != x.rows.shape[-1]:
        return None
    forward.count("attention", x.rows.numel() * matrix.shape[-1])
    matrix = matrix.expand(x.shape[0], *matrix.shape[1:])
    parts = [_first_heads(x.rows[slice(*span)]) @ matrix[b] for b, span in enumerate(x.active.segments)]
    return x.with_rows(torch.cat([_first_heads(part) for part in parts]))


def _heads(x, last):
    """The axis of heads, () or ("f",), of a sequence whose axes end with ``last``; None for other tensors."""
    heads = x.axes[1:-2]
    return heads if x.axes[-2:] == last and heads in ((), ("f",)) else None


def _first_heads(rows):
    """(n, heads, d) as (heads, n, d), or the other way round; (n, d) as it is."""
    return rows.transpose(0, 1) if rows.dim() == 3 else rows


def _over_positions(forward, first, second, soft):
    """(B, [heads,] e, d) from axes (b, [f,] f, p) and (b, [f,] p, f) at one set of positions; None for others. soft: of which of them
    the softmax over the positions is meant."""
    heads = _heads(first, ("f", "p"))
    alike = heads is not None and heads == _heads(second, ("p", "f")) and first.active is second.active
    if not alike or not (first.settled and second.settled) or heads and first.shape[1] != second.shape[1]:
        return None
    active, key, centre = first.active, forward.key("sums"), None
    if any(soft):
        keys, place = (first if soft[0] else second).rows, (key[0], "centre of sums", key[2])
        if is_whole(active):
            centre = torch.stack([keys[slice(*span)].amax(0) for span in active.segments])
            forward.keep_value(place, "kv", centre)
        else:
            centre = forward.recall(place)

    def summed(*pair):
        return _sums(forward, active, pair, soft, centre)

    if forward.policy.kv == "active":
        sums = summed(first.rows, second.rows)
    else:
        rows = {"summed": first.rows, "summed by": second.rows}
        sums = followed(forward, key, "kv", active, rows, summed)
    products, *weights = sums
    if weights:
        products = products / (weights[0][..., None] if soft[0] else weights[0][..., None, :])
    return products.to(first.dtype)


def _sums(forward, active, pair, soft, centre):
    """Products of rows (n, [heads,] e) and (n, [heads,] d) of a set, summed over each sample's, in the widest dtype there is; beside
    them, where one of the pair is ``soft``, the sums of its weights."""
    forward.count("attention", pair[0].numel() * pair[1].shape[-1])
    wide, widest = torch.promote_types(pair[0].dtype, torch.float32), backends.widest(pair[0].device.type)
    products, weights = [], []
    for sample, span in enumerate(active.segments):
        parts = [rows[slice(*span)].to(wide) for rows in pair]
        parts = [(part - centre[sample]).exp() if is_soft else part for part, is_soft in zip(parts, soft)]
        products.append(_first_heads(parts[0]).transpose(-1, -2) @ _first_heads(parts[1]))
        weights += [part.sum(0) for part, is_soft in zip(parts, soft) if is_soft]
    return tuple(torch.stack(each).to(widest) for each in (products, weights) if each)
