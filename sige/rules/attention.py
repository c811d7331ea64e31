"""Attention: queries of the active positions; keys and values of all of them, by the policy's ``kv``."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_view
from sige.errors import PolicyError
from sige.kernels import ops
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.features import squeeze, unsqueeze
from sige.rules.projections import part_of
from sige.rules.registry import rule

_HEADS, _TOKENS = ("b", "f", "p", "f"), ("b", "p", "f")


@rule(F.scaled_dot_product_attention)
def attention(
    forward, func, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    tensors = (query, key, value)
    if (
        isinstance(query, ActiveTensor)
        and query.axes == _TOKENS
        and all(x.dim() == 3 for x in tensors)
        and attn_mask is None
    ):
        found = attention(forward, func, *(unsqueeze(forward, torch.unsqueeze, x, 1) for x in tensors), None, **options)
        return squeeze(forward, torch.squeeze, found, 1)
    layouts = all(not isinstance(x, ActiveTensor) or x.axes == _HEADS for x in tensors)
    if (
        not layouts
        or forward.is_dense_here()
        or not isinstance(query, ActiveTensor)
        or not _fits(forward, attn_mask, query, key)
        or is_causal
        or dropout_p
        or enable_gqa
    ):
        _count(forward, query.shape[:-1].numel(), key.shape[-2], query.shape[-1], value.shape[-1])
        plain = query.dim() == 4 and not any(isinstance(x, ActiveTensor) for x in (*tensors, attn_mask))
        if plain and not (forward.recording or is_causal or dropout_p or enable_gqa):
            return ops.attend(*cast(query, key, value, attn_mask), scale)
        return otherwise(forward, func, (query, key, value, attn_mask), options)
    query, key, value, attn_mask = cast(query, key, value, attn_mask)
    rows = _rows(forward, query, key, value, scale, attn_mask)
    return query.with_rows(_merged(forward, query.active, rows) if forward.policy.merge_rate != 1 else rows)


def _fits(forward, mask, query, key):
    """Whether a mask (B or 1, heads or 1, queries or 1, keys) can be cut to the active queries; no mask always can."""
    if mask is None:
        return True
    whole = not isinstance(key, ActiveTensor) or forward.policy.kv != "active"
    shape = tuple(mask.shape)
    fits = len(shape) == 4 and shape[0] in (1, query.shape[0]) and shape[2] in (1, query.shape[2])
    return fits and whole and not isinstance(mask, ActiveTensor)


def _mask_of_sample(mask, active, sample):
    """The mask's rows for the active queries of a sample, (1, heads or 1, queries or 1, keys), or None."""
    if mask is None:
        return None
    own = mask[sample : sample + 1] if mask.shape[0] > 1 else mask
    if own.shape[2] == 1:
        return own
    start, stop = active.segments[sample]
    return own[:, :, active.positions[start:stop] - sample * active.height * active.width]


def _count(forward, queries, keys, width, value_width):
    forward.count("attention", queries * keys * (width + value_width))


def _rows(forward, query, key, value, scale, mask=None):
    heads, width = query.rows.shape[1:]
    place = forward.key("attention")
    if isinstance(key, ActiveTensor) and forward.policy.kv == "remembered":
        key, value = (_whole(forward, (*place[:1], name, place[2]), x) for name, x in (("key", key), ("value", value)))
    elif isinstance(key, ActiveTensor) and forward.policy.kv == "reprojected":
        key, value = _reprojected(forward, (*place[:1], "tokens", place[2]), key, value)
    outputs = []
    for sample, (start, stop) in enumerate(query.active.segments):
        queries = query.rows[start:stop].transpose(0, 1)[None]
        keys, values = (_of_sample(x, sample) for x in (key, value))
        _count(forward, (stop - start) * heads, keys.shape[-2], width, values.shape[-1])
        if stop > start:
            own = _mask_of_sample(mask, query.active, sample)
            out = ops.attend(queries, keys, values, own, scale)
            outputs.append(out[0].transpose(0, 1))
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else query.rows.new_empty(0, heads, value.shape[-1])


def _merged(forward, active, rows):
    """Attention's output mixed with the recorded one by the policy's ``merge_rate``, which the mixture then replaces."""
    mixed = forward.mix_map(
        forward.key("merge"), "attention_output", active, rows.flatten(1), forward.policy.merge_rate
    )
    return mixed.view_as(rows)


def _whole(forward, key, x):
    """Keys or values of all positions, (B, heads, H*W, width): the remembered ones with the active rows brought up to date."""
    full = forward.keep_map(key, "kv", x.active, x.rows)
    forward.reads(full, "all")
    return full_view(full.to(x.dtype).view(-1, *x.rows.shape[1:]), x.active, x.axes)


def finds_keys(forward, key, value):
    """Whether the policy's ``kv`` can serve these keys and values: to project them anew it must know what they were made of."""
    return forward.policy.kv != "reprojected" or _made_of(forward, key, value) is not None


def _made_of(forward, key, value):
    """The tokens that keys and values were both made of, and (weight, bias) of each; None where no linear layer made them.

    A layer that makes queries too takes part with its rows for keys and for values alone.
    """
    made = [forward.projections.get(x.rows.untyped_storage()._cdata) for x in (key, value)]
    cut = [
        None if found is None or found[0].active is not x.active else part_of(x.rows, found[3], *found[1:3])
        for x, found in zip((key, value), made)
    ]
    return None if None in cut or made[0][0] is not made[1][0] else (made[0][0], cut)


def _reprojected(forward, place, key, value):
    """Keys and values of all positions, projected from remembered tokens: those that the edit left alone, anew at every step."""
    found = _made_of(forward, key, value)
    if found is None:
        raise PolicyError(
            f"policy kv='reprojected' finds no linear layer that makes keys and values from the same tokens at "
            f"{forward.path[-1] or 'the root module'}: use kv='remembered'"
        )
    tokens, layers = found
    full = forward.keep_map(place, "kv_tokens", tokens.active, tokens.rows)
    forward.reads(full, "all")
    return [_projected(forward, full, x, *layer) for x, layer in zip((key, value), layers)]


def _projected(forward, full, x, weight, bias):
    """Keys or values (B, heads, H*W, width) from tokens ``full`` (B*H*W, C); the active rows were projected already."""
    rows = x.rows.flatten(1)
    if not x.active.full:
        others = x.active.others()
        forward.count("linear", others.numel() * weight.numel())
        whole = rows.new_empty(full.shape[0], rows.shape[1])
        ops.scatter_rows_(whole, x.active.positions, rows)
        rest = ops.linear_rows(ops.gather_rows(full, others).to(weight.dtype), weight, bias)
        ops.scatter_rows_(whole, others, rest.to(rows.dtype))
        rows = whole
    return full_view(rows.view(-1, *x.rows.shape[1:]), x.active, x.axes)


def _of_sample(x, sample):
    if isinstance(x, ActiveTensor):  # kv="active": the sample's own active positions alone
        start, stop = x.active.segments[sample]
        return x.rows[start:stop].transpose(0, 1)[None]
    return x[sample : sample + 1]
