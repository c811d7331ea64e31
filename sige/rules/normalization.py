"""Normalisation over space: statistics by the policy's ``norm``.

``cached``: the recording's.  ``dense``: of the whole edited map.  ``incremental``: of the whole edited map, but only the tiles
that the edit touched are summed again. For the latter each tile's mean m and centred sum of squares s are remembered, and for
each sample and channel group the totals, taken about the recorded mean c so that they do not cancel:

    first = sum of n (m - c),   second = sum of s + n (m - c)^2,   mean = c + first/N,   variance = second/N - (first/N)^2.

Positions that are not edited keep the recorded affine map: their remembered activated values are not normalised anew.
"""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_view
from sige.kernels import ops
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
    rows = F.batch_norm(input.rows, running_mean, running_var, weight, bias, False, 0.0, eps)
    return input.with_rows(rows)


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
        return func(input, num_groups, weight, bias, eps)
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
    mean, rstd = _updated(forward, key, totals, x, num_groups, tile, eps)
    scale, shift = _affine(mean, rstd, weight, bias, x.rows.shape[1], x.dtype)
    return x.with_rows(ops.affine_rows(x.rows, scale, shift, x.active.sample()))


def _remember_tiles(forward, key, totals, x, num_groups, tile, mean, rstd, eps):
    means, squares = _moments_of_map(_full_image(x), num_groups, tile)
    size = x.active.height * x.active.width * (x.rows.shape[1] // num_groups)
    second = (1 / rstd.double() ** 2 - eps) * size
    centre = mean.double()
    # One byte is too little for sums of which differences are taken.
    dtype = forward.policy.state_dtype or x.dtype
    dtype = torch.bfloat16 if is_packed(dtype) else dtype
    forward.keep_sums(key, "norm_sums", torch.cat([means, squares], 1).to(dtype), x.active)
    forward.keep_value(totals, "norm_sums", (centre, torch.zeros_like(centre), second))


def _moments_of_map(image, num_groups, tile):
    """Mean and centred sum of squares of every tile of a map (B, C, H, W): two (B*tiles, groups), float32."""
    batch, channels = image.shape[:2]
    image = image.float()
    values = torch.stack([F.avg_pool2d(image, tile), F.avg_pool2d(image.square(), tile)])
    values = values.permute(0, 1, 3, 4, 2).reshape(2, -1, num_groups, channels // num_groups).mean(-1)
    size = tile * tile * (channels // num_groups)
    return values[0], ((values[1] - values[0].square()).clamp(min=0) * size)


def _updated(forward, key, totals, x, num_groups, tile, eps):
    """Statistics (B, groups) of the edited map; brings the remembered tile sums and totals up to date."""
    active, rows = x.active, x.rows
    tile_index = active.positions if tile == 1 else active.tile_index
    count = tile * tile * (x.rows.shape[1] // num_groups)
    new = torch.cat(ops.tile_moments(rows, tile_index.numel(), num_groups), 1)
    entry = forward.memory.recall(key)
    old = forward.journal.rows(entry, entry.value, tile_index)
    ops.scatter_rows_(entry.value, tile_index, new)
    centre, first, second = forward.recall(totals)
    sample = None if active.batch == 1 else tile_index // ((active.height // tile) * (active.width // tile))
    new, old = new.double(), old.double()
    difference, (new_mean, old_mean) = new - old, (new[:, :num_groups], old[:, :num_groups])
    shift = 2 * (centre if sample is None else centre[sample])
    # n ((m' - c)^2 - (m - c)^2) = n (m' - m) (m' + m - 2c)
    moved = count * difference[:, :num_groups]
    second_delta = torch.addcmul(difference[:, num_groups:], moved, new_mean + old_mean - shift)
    if sample is None:
        first, second = first + moved.sum(0, keepdim=True), second + second_delta.sum(0, keepdim=True)
    else:
        first, second = first.index_add(0, sample, moved), second.index_add(0, sample, second_delta)
    forward.keep_value(totals, "norm_sums", (centre, first, second))
    size = active.height * active.width * (x.rows.shape[1] // num_groups)
    offset = first / size
    variance = (second / size - offset.square()).clamp(min=0)
    return centre + offset, (variance + eps).rsqrt()
