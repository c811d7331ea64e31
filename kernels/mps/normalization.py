"""Affine map and statistics of an edited map, on rows, on an Apple GPU. The contract stands in ``sige.kernels.ops``."""

import struct

import torch

from sige.kernels.backends import Declined
from sige.kernels.mps import launch

_STATISTICS_THREADS = 64  # statistics.metal says the same


def affine_rows(rows, scale, shift, sample):
    launch.serve(rows, scale, shift)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    types = {name: launch.NUMBERS[x.dtype] for name, x in (("T_ROW", rows), ("T_SCALE", scale), ("T_SHIFT", shift))}
    sizes = [rows.shape[1], *rows.stride(), *scale.stride(), *shift.stride(), int(sample is not None)]
    picks = rows if sample is None else launch.row_numbers(sample)  # a kernel wants some tensor in every place
    arguments = (rows, scale, shift, picks, out, sizes)
    launch.run("normalization", "affine_rows", types, arguments, *launch.each(*rows.shape))
    return out


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    """In float32: Metal has no double. Declines centres and totals in float64, which no tensor on an Apple GPU has."""
    launch.serve(rows, sums, weight, bias)
    if {centre.dtype, totals.dtype} != {torch.float32}:
        raise Declined("Metal has no double, its kernels read centres and totals in float32")
    tiles, batch, width, device = tile_index.numel(), centre.shape[0], rows.shape[1], rows.device
    old = torch.empty(tiles, 2 * groups, dtype=sums.dtype, device=device)
    change = torch.empty(tiles, 2 * groups, dtype=torch.float32, device=device)
    after = torch.empty(batch, 2 * groups, dtype=torch.float32, device=device)
    scale, shift = (torch.empty(batch, width, dtype=rows.dtype, device=device) for _ in range(2))
    types = {"T_ROW": launch.NUMBERS[rows.dtype], "T_SUM": launch.NUMBERS[sums.dtype]}
    places, centre, per_group, batched = (
        launch.row_numbers(tile_index),
        centre.contiguous(),
        width // groups,
        int(sample is not None),
    )
    picks = launch.row_numbers(sample) if batched else places  # a kernel wants some tensor in every place
    group = (_STATISTICS_THREADS,)
    sizes = [rows.shape[0] // max(tiles, 1), per_group, groups, *rows.stride(), *sums.stride(), batched]
    arguments = (rows, sums, places, centre, picks, old, change, sizes)
    launch.run("statistics", "exchange_sums", types, arguments, (tiles * groups * _STATISTICS_THREADS,), group)
    if tiles == 0:
        change = picks = centre  # a kernel wants some tensor in every place, and none without numbers
    weight_, bias_ = (centre if part is None else part.float().contiguous() for part in (weight, bias))
    (bits,) = struct.unpack("i", struct.pack("f", eps))
    sizes = [tiles, per_group, groups, batched, map_values, bits, int(weight is not None), int(bias is not None)]
    arguments = (change, centre, totals.contiguous(), picks, weight_, bias_, after, scale, shift, sizes)
    launch.run("statistics", "merge_statistics", types, arguments, (batch * groups * _STATISTICS_THREADS,), group)
    return old, after, scale, shift
