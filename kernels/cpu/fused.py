"""Fused operators on a CPU: all that follows a product is done to its sums before they leave the registers.

Exact GELU is left to PyTorch, after the product and the norm's map.
"""

import torch

from sige.kernels.activations import ACTIVATIONS, apply_
from sige.kernels.composed import fused as composed
from sige.kernels.composed.gather import exchange_rows_
from sige.kernels.cpu.library import address, library
from sige.kernels.cpu.product import finished_product, served


def _apart(target, *read):
    """Whether nothing that is read while ``target`` is written lies in its memory; it is plain rows of float32."""
    if target is None:
        return True
    held = target.untyped_storage().data_ptr()
    others = all(tensor is None or tensor.untyped_storage().data_ptr() != held for tensor in read)
    return others and target.dtype == torch.float32 and target.is_contiguous()


def activate_rows(rows, scale, shift, sample, activation, slope, target, positions):
    given = rows, scale, shift, sample, activation, slope, target, positions
    if not served(1, rows, scale, shift) or not _apart(target, rows):
        return composed.activate_rows(*given)
    if activation == "gelu":
        made = apply_(activate_rows(rows, scale, shift, sample, "none", slope, None, None), activation, slope)
        return made if target is None else exchange_rows_(target, positions, made)
    second = torch.empty_like(rows, memory_format=torch.contiguous_format)
    # Named, so that what had to be copied lives as long as the call.
    given = [None if tensor is None else tensor.contiguous() for tensor in (rows, scale, shift, sample, positions)]
    rows, scale, shift, sample, positions = given
    library().activate_rows(
        address(rows), *rows.shape, address(scale), address(shift), address(sample), ACTIVATIONS.index(activation), slope,
        address(target), address(positions), address(second), torch.get_num_threads(),
    )  # fmt: skip
    return second


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, sample, scale, shift, activation, slope, target,
    positions, raw,
):  # fmt: skip
    before = vector, residual, sample
    after = scale, shift, activation, slope, target, positions, raw
    product = source, index, weight, bias
    if not served(groups, source, weight, bias, vector, residual, scale, shift):
        return composed.conv_rows_fused(*product, groups, count, *before, *after)
    empty = source.new_empty(0, len(weight))
    if activation == "gelu" or not _apart(target, source, residual):
        made, _ = finished_product(*product, count, *before)
        if scale is None and activation == "none" and target is None:
            return made, empty
        second = activate_rows(made, scale, shift, sample, activation, slope, target, positions)
    else:
        made, second = finished_product(*product, count, *before, *after)
    return made if raw else empty, empty if second is None else second
