"""Fused operators, as the operators that they stand for, one after the other. The contract stands in ``sige.kernels.ops``."""

from sige.kernels.activations import applied
from sige.kernels.joined_rows import joined
from sige.kernels.normalized_map import normalize_map
from sige.kernels.reference.convolution import conv_map, conv_rows, linear_rows
from sige.kernels.reference.gather import exchange_rows_
from sige.kernels.reference.normalization import affine_rows


def activate_rows(rows, scale, shift, sample, activation, slope, target, positions, rest=None, rest_rows=None):
    rows = joined(rows, rest, rest_rows)
    rows = rows.clone() if scale is None else affine_rows(rows, scale, shift, sample)
    rows = applied(rows, activation, slope)
    return rows if target is None else exchange_rows_(target, positions, rows)


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw, rest=None, rest_rows=None, tiling=None,
):  # fmt: skip
    source = joined(source, rest, rest_rows)
    if index is not None and index.dim() == 1:
        source, index = source[index], None
    made = linear_rows(source, weight, bias) if index is None else conv_rows(source, index, weight, bias, groups)
    made = made[:count]
    if vector is not None:
        made = made + (vector if len(vector) == 1 else vector[sample])
    if residual is not None:
        made = made + (residual if residual_rows is None else residual[residual_rows])
    empty = made.new_empty(0, made.shape[1])
    second = made if scale is None else affine_rows(made, scale, shift, sample)
    second = applied(second, activation, slope)
    if target is not None:
        second = exchange_rows_(target, positions, second)
    elif second is made:
        second = empty
    return made if raw else empty, second


def conv_map_fused(
    image, weight, bias, stride, padding, dilation, groups, norm_groups, norm_weight, norm_bias, eps, activation, slope
):
    image = normalize_map(image, norm_groups, norm_weight, norm_bias, eps, activation, slope)
    return conv_map(image, weight, bias, stride, padding, dilation, groups)
