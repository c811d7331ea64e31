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


def _summed(rows, sums, centre, totals):
    plain = sums.dtype == rows.dtype and rows.is_contiguous() and sums.is_contiguous()
    return plain and centre.dtype == totals.dtype == torch.float64


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    given = rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps
    if not served(rows, weight, bias) or not _summed(rows, sums, centre, totals):
        return composed.update_statistics_(*given)
    tiles, channels, batch = tile_index.shape[0], rows.shape[1], centre.shape[0]
    # Named, so that what had to be copied lives as long as the call.
    tile_index, centre, *picks = map(plain, (tile_index, centre, sample, weight, bias))
    totals = totals.clone(memory_format=torch.contiguous_format)
    old = sums.new_empty(tiles, sums.shape[1])
    scale, shift = rows.new_empty(batch, channels), rows.new_empty(batch, channels)
    of_dtype("update_statistics", rows)(
        address(rows), tiles, rows.shape[0] // max(tiles, 1), channels, groups, address(sums), address(tile_index),
        address(centre), batch, address(totals), *map(address, picks), float(map_values), eps, address(old),
        address(scale), address(shift), torch.get_num_threads(),
    )  # fmt: skip
    return old, totals, scale, shift
