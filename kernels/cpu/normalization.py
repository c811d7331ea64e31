"""Affine map on a CPU: PyTorch's operators at their best, see `composed`. Statistics: one compiled pass where it serves them."""

import torch

from sige.kernels.composed import normalization as composed
from sige.kernels.composed.normalization import affine_rows  # noqa: F401
from sige.kernels.cpu.library import library


def _served(rows, sums, centre, totals, weight, bias):
    numbers = all(tensor is None or tensor.dtype == torch.float32 for tensor in (rows, sums, weight, bias))
    totalled = centre.dtype == totals.dtype == torch.float64
    return numbers and totalled and rows.is_contiguous() and sums.is_contiguous() and library() is not None


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    given = rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps
    if not _served(rows, sums, centre, totals, weight, bias):
        return composed.update_statistics_(*given)
    tiles, channels, batch = tile_index.shape[0], rows.shape[1], centre.shape[0]
    # Named, so that what had to be copied lives as long as the call.
    tile_index, centre, *picks = (
        None if tensor is None else tensor.contiguous() for tensor in (tile_index, centre, sample, weight, bias)
    )
    totals = totals.clone(memory_format=torch.contiguous_format)
    old = sums.new_empty(tiles, sums.shape[1])
    scale, shift = rows.new_empty(batch, channels), rows.new_empty(batch, channels)
    library().update_statistics(
        rows.data_ptr(), tiles, rows.shape[0] // max(tiles, 1), channels, groups, sums.data_ptr(), tile_index.data_ptr(),
        centre.data_ptr(), batch, totals.data_ptr(), *map(_address, picks), float(map_values), eps, old.data_ptr(),
        scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return old, totals, scale, shift
