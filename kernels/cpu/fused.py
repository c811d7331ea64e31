"""Fused operators on a CPU: a compiled product with all that is added to it, then `composed`'s norm and activation."""

from sige.kernels.composed import fused as composed
from sige.kernels.composed.fused import activate_rows  # noqa: F401
from sige.kernels.cpu.product import product, served


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, sample, scale, shift, activation, slope, target,
    positions, raw,
):  # fmt: skip
    after = scale, shift, activation, slope, target, positions, raw
    if not served(groups, source, weight, bias, vector, residual):
        return composed.conv_rows_fused(source, index, weight, bias, groups, count, vector, residual, sample, *after)
    picks = sample if vector is not None and len(vector) > 1 else None
    made = product(source, index, weight, bias, count, vector, residual, picks)
    return composed.finish(made, sample, *after)
