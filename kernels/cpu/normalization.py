"""Affine map, and statistics of an edited map, on a CPU: one compiled pass over the rows each."""

import torch

from sige.kernels.composed import normalization as composed
from sige.kernels.cpu.fused import activate_rows
from sige.kernels.cpu.library import address, plain
from sige.kernels.cpu.product import of_dtype, served


def affine_rows(rows, scale, shift, sample):
    if not served(rows, scale, shift):
        return composed.affine_rows(rows, scale, shift, sample)
    return activate_rows(rows, scale, shift, sample, "none", 0.0, None, None)


def updated_at_once(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    """Whether one compiled pass does all of an `update_statistics_`."""
    plain = sums.dtype == rows.dtype and rows.is_contiguous() and sums.is_contiguous()
    return served(rows, weight, bias) and plain and centre.dtype == totals.dtype == torch.float64


def updated(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    """What `update_statistics_` gives, in one compiled pass."""
    tiles, (count, channels), batch = tile_index.shape[0], rows.shape, centre.shape[0]
    # Named, so that what had to be copied lives as long as the call.
    tile_index, centre, *picks = map(plain, (tile_index, centre, sample, weight, bias))
    totals = totals.clone(memory_format=torch.contiguous_format)
    old = sums.new_empty(tiles, sums.shape[1])
    scale, shift = rows.new_empty(batch, channels), rows.new_empty(batch, channels)
    of_dtype("update_statistics", rows)(
        rows.data_ptr(), tiles, count // max(tiles, 1), channels, groups, sums.data_ptr(), tile_index.data_ptr(), centre.data_ptr(),
        batch, totals.data_ptr(), *map(address, picks), float(map_values), eps, old.data_ptr(), scale.data_ptr(), shift.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return old, totals, scale, shift


def update_statistics_(*args):
    return updated(*args) if updated_at_once(*args) else composed.update_statistics_(*args)
