"""Affine map and tile moments on rows, on an Apple GPU. The contract stands in ``sige.kernels.ops``."""

import torch

from sige.kernels.mps import launch

_MOMENT_THREADS = 64  # normalization.metal says the same


def affine_rows(rows, scale, shift, sample):
    launch.serve(rows, scale, shift)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    types = {name: launch.NUMBERS[x.dtype] for name, x in (("T_ROW", rows), ("T_SCALE", scale), ("T_SHIFT", shift))}
    sizes = [rows.shape[1], *rows.stride(), *scale.stride(), *shift.stride(), int(sample is not None)]
    picks = rows if sample is None else launch.row_numbers(sample)  # a kernel wants some tensor in every place
    arguments = (rows, scale, shift, picks, out, sizes)
    launch.run("normalization", "affine_rows", types, arguments, *launch.each(*rows.shape))
    return out


def tile_moments(rows, tiles, groups):
    launch.serve(rows)
    moments = [torch.empty(tiles, groups, dtype=torch.float32, device=rows.device) for _ in range(2)]
    if tiles:
        number = launch.NUMBERS[rows.dtype]
        types = {"T_ROW": number, "T_SCALE": number, "T_SHIFT": number}
        sizes = [rows.shape[0] // tiles, rows.shape[1] // groups, groups, *rows.stride()]
        threads = (tiles * groups * _MOMENT_THREADS,)
        launch.run("normalization", "tile_moments", types, (rows, *moments, sizes), threads, (_MOMENT_THREADS,))
    return tuple(moments)
