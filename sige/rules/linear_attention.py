"""Attention without a softmax: keys and values of all positions make one small matrix, which queries are multiplied by.

    sums = values @ keys (over all positions),   out = sums @ queries

An edit takes the products of its rows' old keys and values out of the remembered sums and puts the new ones in, so that the sums are
those of the whole edited map, at a cost proportional to the edit. Queries are those of the active positions, as in any attention.
"""

import torch

from sige.active_tensor import ActiveTensor
from sige.kernels import backends
from sige.rules.autocast import cast


def linear_product(forward, first, second):
    """``first @ second`` where positions are what is summed over (a plain tensor), or where one of the two is plain and features are
    (an active tensor); None otherwise. Neither is a delayed tensor."""
    active = [isinstance(x, ActiveTensor) for x in (first, second)]
    if not any(active) or forward.is_dense_here() or first.dim() < 2 or second.dim() < 2:
        return None
    if not all(x.is_floating_point() for x in (first, second)):
        return None
    first, second = cast(first, second)
    if first.dtype != second.dtype:
        return None
    if all(active):
        return _over_positions(forward, first, second)
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


def _over_positions(forward, first, second):
    """(B, [heads,] e, d) from axes (b, [f,] f, p) and (b, [f,] p, f) at one set of positions; None for others."""
    heads = _heads(first, ("f", "p"))
    alike = heads is not None and heads == _heads(second, ("p", "f")) and first.active is second.active
    if not alike or not (first.settled and second.settled) or heads and first.shape[1] != second.shape[1]:
        return None
    active, key = first.active, forward.key("sums")
    sums = _sums(forward, active, first.rows, second.rows)
    if forward.policy.kv != "active":
        old = [
            forward.exchange_map((key[0], name, key[2]), "kv", active, x.rows.flatten(1))
            for name, x in (("summed", first), ("summed by", second))
        ]
        whole = active.count == active.batch * active.height * active.width
        if not whole and all(rows is not None for rows in old):
            old = (rows.view_as(x.rows).to(x.dtype) for rows, x in zip(old, (first, second)))
            sums = forward.recall(key) + sums - _sums(forward, active, *old)
        forward.keep_value(key, "kv", sums)
    return sums.to(first.dtype)


def _sums(forward, active, first, second):
    """Products of the rows (n, [heads,] e) and (n, [heads,] d) of a set, summed over each sample's, in the widest dtype there is."""
    forward.count("attention", first.numel() * second.shape[-1])
    wide = torch.promote_types(first.dtype, torch.float32)
    spans = [slice(*span) for span in active.segments]
    parts = [
        _first_heads(first[span].to(wide)).transpose(-1, -2) @ _first_heads(second[span].to(wide)) for span in spans
    ]
    return torch.stack(parts).to(backends.widest(first.device.type))
