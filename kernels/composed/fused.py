"""Fused operators on a CPU: the same operators in the same order, each but the first in place where nothing else needs what was there.

The bits are those of the operators one by one; what is saved is memory that is allocated and passes over it.
"""

from sige.kernels.activations import apply_
from sige.kernels.composed.convolution import conv_map, conv_rows, linear_rows
from sige.kernels.composed.gather import exchange_rows_
from sige.kernels.composed.normalization import affine_rows
from sige.kernels.joined_rows import joined
from sige.kernels.normalized_map import normalize_map


def activate_rows(rows, scale, shift, sample, activation, slope, target, positions, rest=None, rest_rows=None):
    rows = joined(rows, rest, rest_rows)
    rows = rows.clone() if scale is None else affine_rows(rows, scale, shift, sample)
    rows = apply_(rows, activation, slope)
    return rows if target is None else exchange_rows_(target, positions, rows)


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw, rest=None, rest_rows=None, tiling=None,
):  # fmt: skip
    source = joined(source, rest, rest_rows)
    if index is not None and index.dim() == 1:
        source, index = source.index_select(0, index), None
    made = linear_rows(source, weight, bias) if index is None else conv_rows(source, index, weight, bias, groups)
    made = made if len(made) == count else made[:count]
    if vector is not None:
        made.add_(vector if len(vector) == 1 else vector.index_select(0, sample))
    if residual is not None:
        made.add_(residual if residual_rows is None else residual.index_select(0, residual_rows))
    empty = made.new_empty(0, made.shape[1])
    second = empty
    if scale is not None:
        second = apply_(affine_rows(made, scale, shift, sample), activation, slope)
    elif activation != "none":
        second = apply_(made.clone() if raw else made, activation, slope)
    if target is not None:
        second = exchange_rows_(target, positions, made if second is empty else second)
    return made if raw else empty, second


def conv_map_fused(
    image, weight, bias, stride, padding, dilation, groups, norm_groups, norm_weight, norm_bias, eps, activation, slope
):
    image = normalize_map(image, norm_groups, norm_weight, norm_bias, eps, activation, slope)
    return conv_map(image, weight, bias, stride, padding, dilation, groups)
