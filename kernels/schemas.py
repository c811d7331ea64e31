"""The operators as PyTorch knows them, under ``torch.ops.sige``: schema, fake implementation and a formula for what they multiply.

What an operator does, and what its arguments are, stands with the function of its name in ``sige.kernels.ops``.
"""

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from sige.kernels import backends

_library = torch.library.Library("sige", "DEF")
_library.define("gather_rows(Tensor source, Tensor index) -> Tensor")
_library.define("scatter_rows_(Tensor(a!) target, Tensor index, Tensor rows) -> ()")
_library.define("exchange_rows_(Tensor(a!) target, Tensor index, Tensor rows) -> Tensor")
_library.define(
    "conv_rows(Tensor source, Tensor index, Tensor weight, Tensor? bias, int groups, int[]? tiling=None) -> Tensor"
)
_library.define(
    "conv_tiles(Tensor source, Tensor index, int[2] tile, Tensor weight, Tensor? bias, int groups) -> Tensor"
)
_library.define(
    "conv_map(Tensor image, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor"
)
_library.define("linear_rows(Tensor rows, Tensor weight, Tensor? bias) -> Tensor")
_library.define("affine_rows(Tensor rows, Tensor scale, Tensor shift, Tensor? sample) -> Tensor")
_library.define(
    "activate_rows(Tensor rows, Tensor? scale, Tensor? shift, Tensor? sample, str activation, float slope, Tensor(a!)? target, "
    "Tensor? positions, Tensor? rest=None, Tensor? rest_rows=None) -> Tensor"
)
# For compilers, which take a result and a tensor that may be written for two results, and fail where nothing is written.
_library.define(
    "activate_rows.unwritten(Tensor rows, Tensor? scale, Tensor? shift, Tensor? sample, str activation, float slope) -> Tensor"
)
_library.define(
    "conv_rows_fused(Tensor source, Tensor? index, Tensor weight, Tensor? bias, int groups, int count, Tensor? vector, "
    "Tensor? residual, Tensor? residual_rows, Tensor? sample, Tensor? scale, Tensor? shift, str activation, float slope, "
    "Tensor(a!)? target, Tensor? positions, bool raw, Tensor? rest=None, Tensor? rest_rows=None, "
    "int[]? tiling=None) -> (Tensor, Tensor)"
)
_library.define(
    "normalize_map(Tensor image, int groups, Tensor? weight, Tensor? bias, float eps, str activation, float slope) -> Tensor"
)
_library.define(
    "conv_map_fused(Tensor image, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "int norm_groups, Tensor? norm_weight, Tensor? norm_bias, float eps, str activation, float slope) -> Tensor"
)
_library.define(
    "project_rows_(Tensor rows, Tensor query_weight, Tensor? query_bias, Tensor key_weight, Tensor? key_bias, Tensor value_weight, "
    "Tensor? value_bias, Tensor(a!) keys, Tensor(b!) values, Tensor positions) -> (Tensor, Tensor, Tensor)"
)
_library.define("attend(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor")
_library.define(
    "update_statistics_(Tensor rows, Tensor(a!) sums, Tensor tile_index, Tensor centre, Tensor totals, Tensor? sample, "
    "Tensor? weight, Tensor? bias, int groups, int map_values, float eps) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "normalize_rows_(Tensor rows, Tensor? rest, Tensor? rest_rows, Tensor(a!) sums, Tensor tile_index, Tensor centre, Tensor totals, "
    "Tensor? sample, Tensor? weight, Tensor? bias, int groups, int map_values, float eps, str activation, float slope, "
    "Tensor(b!)? target, Tensor? positions) -> (Tensor, Tensor, Tensor)"
)
_library.define("compact(Tensor mask, int capacity) -> (Tensor, Tensor)")


def _run(operator):
    def call(*args):
        return backends.implementation(operator, args[0].device.type)(*args)

    return call


for _operator in backends.FAMILIES:
    for _key in ("CPU", "CUDA", "MPS"):
        _library.impl(_operator, _run(_operator), _key)


def _activate_unwritten(*args):
    return _run("activate_rows")(*args, None, None)


for _key in ("CPU", "CUDA", "MPS"):
    _library.impl("activate_rows.unwritten", _activate_unwritten, _key)


@torch.library.register_fake("sige::gather_rows", lib=_library)
def _(source, index):
    return source.new_empty(index.numel(), source.shape[1])


@torch.library.register_fake("sige::scatter_rows_", lib=_library)
def _(target, index, rows):
    return None


@torch.library.register_fake("sige::exchange_rows_", lib=_library)
def _(target, index, rows):
    return target.new_empty(index.numel(), target.shape[1])


@torch.library.register_fake("sige::conv_rows", lib=_library)
def _(source, index, weight, bias, groups, tiling=None):
    return weight.new_empty(index.shape[0], weight.shape[0])


@torch.library.register_fake("sige::conv_tiles", lib=_library)
def _(source, index, tile, weight, bias, groups):
    return weight.new_empty(index.shape[0] * tile[0] * tile[1], weight.shape[0])


@torch.library.register_fake("sige::conv_map_fused", lib=_library)
@torch.library.register_fake("sige::conv_map", lib=_library)
def _(image, weight, bias, stride, padding, dilation, groups, *before):
    height, width = (
        (image.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (weight.shape[2 + axis] - 1) - 1) // stride[axis]
        + 1
        for axis in (0, 1)
    )
    shape = (image.shape[0], weight.shape[0], height, width)
    return image.new_empty(shape).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("sige::linear_rows", lib=_library)
def _(rows, weight, bias):
    return rows.new_empty(rows.shape[0], weight.shape[0])


@torch.library.register_fake("sige::affine_rows", lib=_library)
def _(rows, scale, shift, sample):
    return torch.empty_like(rows)


@torch.library.register_fake("sige::activate_rows", lib=_library)
def _(rows, scale, shift, sample, activation, slope, target, positions, rest=None, rest_rows=None):
    if target is not None:
        return target.new_empty(len(rows), target.shape[1])
    return torch.empty_like(rows) if rest is None else rows.new_empty(len(rows), rows.shape[1] + rest.shape[1])


@torch.library.register_fake("sige::activate_rows.unwritten", lib=_library)
def _(rows, scale, shift, sample, activation, slope):
    return torch.empty_like(rows)


@torch.library.register_fake("sige::conv_rows_fused", lib=_library)
def _(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw, rest=None, rest_rows=None, tiling=None,
):  # fmt: skip
    width = weight.shape[0]
    some = target is not None or scale is not None or activation != "none"
    second = weight if target is None else target
    return weight.new_empty(count if raw else 0, width), second.new_empty(count if some else 0, width)


@torch.library.register_fake("sige::update_statistics_", lib=_library)
def _(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    scale = rows.new_empty(centre.shape[0], rows.shape[1])
    return sums.new_empty(tile_index.numel(), sums.shape[1]), torch.empty_like(totals), scale, torch.empty_like(scale)


@torch.library.register_fake("sige::normalize_rows_", lib=_library)
def _(
    rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps, activation, slope,
    target, positions,
):  # fmt: skip
    width = rows.shape[1] + (0 if rest is None else rest.shape[1])
    made = (rows if target is None else target).new_empty(len(rows), width)
    return sums.new_empty(tile_index.numel(), sums.shape[1]), torch.empty_like(totals), made


@torch.library.register_fake("sige::normalize_map", lib=_library)
def _(image, groups, weight, bias, eps, activation, slope):
    return torch.empty_like(image, memory_format=torch.channels_last)


@torch.library.register_fake("sige::project_rows_", lib=_library)
def _(rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, keys, values, positions):
    made = rows.new_empty(len(rows), len(query_weight))
    return made, keys.new_empty(len(rows), keys.shape[1]), values.new_empty(len(rows), values.shape[1])


@torch.library.register_fake("sige::attend", lib=_library)
def _(query, key, value, mask, scale):
    batch, heads, count, _ = query.shape
    return query.new_empty(batch, count, heads, value.shape[-1]).transpose(1, 2)


@torch.library.register_fake("sige::compact", lib=_library)
def _(mask, capacity):
    return mask.new_empty(capacity, dtype=torch.int64), mask.new_empty(1, dtype=torch.int32)


@register_flop_formula(torch.ops.sige.attend)
def _attend_flops(query, key, value, mask, scale, *, out_shape=None, **_):
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


@register_flop_formula(torch.ops.sige.conv_rows)
def _conv_rows_flops(source, index, weight, bias, groups, tiling=None, *, out_shape=None, **_):
    return 2 * index[0] * weight[0] * weight[1] * weight[2] * weight[3]


@register_flop_formula(torch.ops.sige.conv_tiles)
def _conv_tiles_flops(source, index, tile, weight, bias, groups, *, out_shape=None, **_):
    return 2 * index[0] * tile[0] * tile[1] * weight[0] * weight[1] * weight[2] * weight[3]


@register_flop_formula([torch.ops.sige.conv_map, torch.ops.sige.conv_map_fused])
def _conv_map_flops(image, weight, bias, stride, padding, dilation, groups, *before, out_shape=None, **_):
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * weight[0] * weight[1] * weight[2] * weight[3]


@register_flop_formula(torch.ops.sige.conv_rows_fused)
def _conv_rows_fused_flops(source, index, weight, bias, groups, count, *_, out_shape=None, **__):
    return 2 * count * math.prod(weight)


@register_flop_formula(torch.ops.sige.linear_rows)
def _linear_rows_flops(rows, weight, bias, *, out_shape=None, **_):
    return 2 * rows[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.sige.project_rows_)
def _project_rows_flops(rows, query_weight, query_bias, key_weight, key_bias, value_weight, *_, out_shape=None, **__):
    return 2 * rows[0] * sum(math.prod(weight) for weight in (query_weight, key_weight, value_weight))
