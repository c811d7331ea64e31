"""Normalisation over space: statistics by the policy's ``norm``.

``cached``: the recording's.  ``dense``: of the whole edited map.  ``incremental``: of the whole edited map, but only the tiles
that the edit touched are summed again. For the latter are remembered: the recorded mean c of each sample and channel group, of each
tile the sums of x - c and of (x - c)^2, about c so that they do not cancel, and the totals of these sums over a sample's map,

    mean = c + first/N,   variance = second/N - (first/N)^2.

Positions that are not edited keep the recorded affine map: their remembered activated values are not normalised anew.
"""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_view
from sige.kernels import backends, ops
from sige.kernels.kept import Kept
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.state.packed import is_packed

_LAYOUTS = (("b", "f", "h", "w"), ("b", "f", "p"))


@rule(F.group_norm, torch.group_norm)
def group_norm(forward, func, input, num_groups, weight=None, bias=None, eps=1e-5, *rest):
    if isinstance(input, ActiveTensor):
        if input.axes not in _LAYOUTS or not input.settled:
            return otherwise(forward, func, (input, num_groups, weight, bias, eps), {})
    elif input.dim() != 4:
        return _plain(forward, func, input, num_groups, weight, bias, eps)
    sparse = isinstance(input, ActiveTensor) or forward.is_sparse_level(*input.shape[2:])
    sparse = sparse and not forward.is_of_other_samples(input)
    if forward.is_dense_here() or forward.policy.norm == "dense" or not sparse:
        return _plain(forward, func, forward.densify(input), num_groups, weight, bias, eps)
    if not isinstance(input, ActiveTensor):
        input = forward.activate(input, _LAYOUTS[0])
    if forward.policy.norm == "cached":
        return _cached(forward, forward.key("norm"), input, num_groups, weight, bias, eps)
    return _incremental(forward, forward.key("norm"), input, num_groups, weight, bias, eps)


@rule(F.batch_norm)
def batch_norm(
    forward, func, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """With running statistics an affine map of each channel; with those of the batch there is no rule."""
    place = input.axes.index("f") if isinstance(input, ActiveTensor) and "f" in input.axes else None
    if training or place != 1 or input.axes.count("f") != 1 or any(input.pad):
        return otherwise(forward, func, (input, running_mean, running_var, weight, bias, training, momentum, eps), {})
    if forward.recording or input.rows.dim() != 2:
        return input.with_rows(F.batch_norm(input.rows, running_mean, running_var, weight, bias, False, 0.0, eps))
    return input.with_rows(
        ops.affine_rows(input.rows, *_of_running(running_mean, running_var, weight, bias, eps, input.dtype))
    )


_of_layers = Kept()


def _of_running(mean, var, weight, bias, eps, dtype):
    """Scale and shift (1, C) of a batch norm, in ``dtype``, or in float32 for 16 bit. Made once for each state of the layer."""

    def make():
        wide = torch.promote_types(dtype, torch.float32)
        scale = (var.to(backends.widest(var.device.type)) + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return scale.to(wide)[None], shift.to(wide)[None]

    return _of_layers.of(var, make, eps, dtype, weight is None, bias is None, others=(mean, weight, bias))


@rule(F.instance_norm)
def instance_norm(
    forward,
    func,
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    """A group norm whose groups are single channels; with running statistics a batch norm."""
    if not use_input_stats:
        return batch_norm(forward, F.batch_norm, input, running_mean, running_var, weight, bias, False, momentum, eps)
    return group_norm(forward, F.group_norm, input, input.shape[1], weight, bias, eps)


def _plain(forward, func, input, num_groups, weight, bias, eps):
    """A plain map. With ``norm="cached"`` the recorded statistics hold here too, as in SIGE's dense levels."""
    if forward.policy.norm != "cached" or forward.is_dense_here() or input.dim() < 3:
        if forward.recording or input.dim() != 4:
            return func(input, num_groups, weight, bias, eps)
        return ops.normalize_map(input, num_groups, weight, bias, eps)
    key = forward.key("norm")
    if forward.recording:
        out, mean, rstd = _native(input, num_groups, weight, bias, eps)
        forward.keep_value(key, "norm_stats", _affine(mean, rstd, weight, bias, input.shape[1], input.dtype))
        return out
    scale, shift = forward.recall(key)
    broadcast = (*scale.shape, *(1,) * (input.dim() - 2))
    return torch.addcmul(shift.view(broadcast), input, scale.view(broadcast))


def _native(input, num_groups, weight, bias, eps):
    """Output, mean and reciprocal deviation (B, groups), the statistics in float32 at least."""
    batch, channels = input.shape[:2]
    wide = torch.promote_types(input.dtype, torch.float32)
    weight = torch.ones(channels, dtype=wide, device=input.device) if weight is None else weight.to(wide)
    bias = torch.zeros(channels, dtype=wide, device=input.device) if bias is None else bias.to(wide)
    # In the channels-last layout PyTorch sums values and their squares in float32. For an instance norm, whose channels may vary by
    # little about a large mean, that leaves too few digits.
    last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last) and num_groups < channels
    if not (input.is_contiguous() or last):
        input = input.contiguous()
    return torch.native_group_norm(input, weight, bias, batch, channels, input[0, 0].numel(), num_groups, eps)


def _affine(mean, rstd, weight, bias, channels, dtype):
    """Scale and shift (B, C) of the normalisation with statistics (B, groups)."""
    batch, groups = mean.shape
    mean, rstd = mean.float()[..., None], rstd.float()[..., None]
    scale = rstd.expand(batch, groups, channels // groups) if weight is None else rstd * weight.float().view(groups, -1)
    shift = -mean * scale if bias is None else bias.float().view(groups, -1) - mean * scale
    return scale.reshape(batch, channels).to(dtype), shift.reshape(batch, channels).to(dtype)


def _full_image(x):
    """The rows of a full set as a plain image (B, C, H, W), channels-last."""
    return full_view(x.rows, x.active, _LAYOUTS[0])


def _from_image(x, image):
    places = image.movedim(1, -1)
    return x.with_rows(places.reshape(-1, image.shape[1]))


def _cached(forward, key, x, num_groups, weight, bias, eps):
    if forward.recording:
        out, mean, rstd = _native(_full_image(x), num_groups, weight, bias, eps)
        forward.keep_value(key, "norm_stats", _affine(mean, rstd, weight, bias, x.rows.shape[1], x.dtype))
        return _from_image(x, out)
    scale, shift = forward.recall(key)
    return x.with_rows(ops.affine_rows(x.rows, scale, shift, x.active.sample()))


def _incremental(forward, key, x, num_groups, weight, bias, eps):
    if x.active.kind != "level":
        level = forward.plan.level_set(x.active.height, x.active.width)
        x = ActiveTensor(forward.resite(x, level), level, x.axes)
    tile = forward.plan.tile_side(x.active.height, x.active.width)
    totals = (*key[:1], "norm_totals", key[2])
    if x.active.full:
        out, mean, rstd = _native(_full_image(x), num_groups, weight, bias, eps)
        _remember_tiles(forward, key, totals, x, num_groups, tile, mean, rstd, eps)
        return _from_image(x, out)
    scale, shift = _updated(forward, key, totals, x, num_groups, tile, weight, bias, eps)
    return x.with_rows(ops.affine_rows(x.rows, scale, shift, x.active.sample()))


def _remember_tiles(forward, key, totals, x, num_groups, tile, mean, rstd, eps):
    wide = backends.widest(x.rows.device.type)
    size = x.active.height * x.active.width * (x.rows.shape[1] // num_groups)
    centre = mean.to(wide)
    second = (1 / rstd.to(wide) ** 2 - eps) * size
    # One byte is too little for sums of which differences are taken.
    dtype = forward.policy.state_dtype or x.dtype
    dtype = torch.bfloat16 if is_packed(dtype) else dtype
    forward.keep_sums(key, "norm_sums", _sums_of_map(_full_image(x), mean, tile).to(dtype), x.active)
    forward.keep_value(totals, "norm_sums", (centre, torch.cat([torch.zeros_like(second), second], 1)))


def _sums_of_map(image, centre, tile):
    """Sums of x - c and (x - c)^2 of every tile and group of a map (B, C, H, W) with centres (B, groups): (B*tiles, 2*groups)."""
    channels, groups = image.shape[1], centre.shape[1]
    apart = image - centre.repeat_interleave(channels // groups, 1)[:, :, None, None]
    means = torch.stack([F.avg_pool2d(apart, tile), F.avg_pool2d(apart.square_(), tile)], 1)
    means = means.permute(0, 3, 4, 1, 2).reshape(-1, 2 * groups, channels // groups)
    return means.sum(2) * tile**2


def _updated(forward, key, totals, x, num_groups, tile, weight, bias, eps):
    """Scale and shift (B, C) by the statistics of the edited map; brings the remembered tile sums and totals up to date."""
    active, channels = x.active, x.rows.shape[1]
    tile_index = active.positions if tile == 1 else active.tile_index
    sample = None if active.batch == 1 else tile_index // ((active.height // tile) * (active.width // tile))
    size = active.height * active.width * (channels // num_groups)
    entry, (centre, sums) = forward.memory.recall(key), forward.recall(totals)
    old, sums, scale, shift = ops.update_statistics_(
        x.rows, entry.value, tile_index, centre, sums, sample, weight, bias, num_groups, size, eps
    )
    forward.journal.keep(entry, entry.value, tile_index, old)
    forward.keep_value(totals, "norm_sums", (centre, sums))
    return scale, shift
