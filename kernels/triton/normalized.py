"""A group norm that its rows change, on a GPU: one kernel where few tiles were touched. The contract stands in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.triton import channels, epilogue, launch, statistics
from sige.kernels.triton.fused import activate_rows
from sige.kernels.triton.normalization import prepared, scale_and_shift


@triton.jit(do_not_specialize=["tiles", "map_values"])
def _normalize(
    rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, old, after, second, target, positions,
    tiles, map_values, rows_row, rows_column, rest_row, rest_column, sums_row, sums_column, target_row, target_column,
    FIRST: tl.constexpr, EPS: tl.constexpr, POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BT: tl.constexpr, BG: tl.constexpr, BV: tl.constexpr, BIG: tl.constexpr,
):  # fmt: skip
    # A program has BG groups of one sample to itself: it reads their channels twice, for the sums and to normalise them.
    which = tl.program_id(1)
    here = tl.program_id(0) * BG + tl.arange(0, BG)
    added = statistics.exchanged(
        rows, rest, rest_rows, sums, tile_index, centre, sample, old, which, 0, tiles, rows_row, rows_column, rest_row, rest_column,
        sums_row, sums_column, FIRST, POSITIONS, PER_GROUP, GROUPS, BT, BG, BV, BIG,
    )  # fmt: skip
    mean, rstd = statistics.merged(*added, totals, after, centre, which, here, map_values, EPS, GROUPS)
    mean = tl.reshape(tl.broadcast_to(mean.to(tl.float32)[None, :], (BT, BG)), (BT * BG,))[:, None]
    rstd = tl.reshape(tl.broadcast_to(rstd.to(tl.float32)[None, :], (BT, BG)), (BT * BG,))[:, None]
    pair = tl.arange(0, BT * BG)
    group = tl.program_id(0) * BG + pair % BG
    for start in range(0, tiles, BT):
        tile = start + pair // BG
        mine = (tile < tiles) & (group < GROUPS)
        if sample is not None:
            mine &= tl.load(sample + tile, mask=mine, other=-1) == which
        for value in range(0, POSITIONS * PER_GROUP, BV):
            row, column, known = statistics.places(tile, group, mine, value, POSITIONS, PER_GROUP, BV, BIG)
            inside = (row >= 0) & known
            made = channels.taken(
                rows, rest, rest_rows, row, column, known, rows_row, rows_column, rest_row, rest_column, FIRST
            ).to(tl.float32)
            made = (made - mean) * rstd
            if weight is not None:
                made *= tl.load(weight + column, mask=inside, other=0).to(tl.float32)
            if bias is not None:
                made += tl.load(bias + column, mask=inside, other=0).to(tl.float32)
            made = epilogue.activated(made, ACTIVATION, SLOPE)
            place = second + row * (GROUPS * PER_GROUP) + column
            if target is None:
                tl.store(place, made.to(second.dtype.element_ty), mask=inside)
            else:
                into = tl.load(positions + row, mask=row >= 0, other=-1).to(row.dtype)
                spot = target + into * target_row + column * target_column
                written = inside & (into >= 0)
                # Rows are distinct: no other program writes here.
                tl.store(place, tl.load(spot, mask=written, other=0), mask=inside)
                tl.store(spot, made.to(target.dtype.element_ty), mask=written)


def normalize_rows_(
    rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps, activation, slope,
    target, positions,
):  # fmt: skip
    given = rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps
    chosen, arguments = prepared(*given, rest, rest_rows, target)
    old, after = arguments["old"], arguments["after"]
    if chosen.parts > 1:
        scale, shift = scale_and_shift(chosen, arguments)
        if sample is not None:
            sample = sample.repeat_interleave(arguments["POSITIONS"])
        made = activate_rows(rows, scale, shift, sample, activation, slope, target, positions, rest, rest_rows)
        return old, after, made
    shape = len(rows), groups * arguments["PER_GROUP"]
    second = torch.empty(shape, dtype=(rows if target is None else target).dtype, device=rows.device)
    arguments.update(second=second, target=target, positions=None if target is None else positions.contiguous())
    arguments.update(target_row=1, target_column=1, ACTIVATION=activation, SLOPE=slope)
    if target is not None:
        arguments.update(target_row=target.stride(0), target_column=target.stride(1))
    launch.run(_normalize, (triton.cdiv(groups, chosen.beside), len(centre)), arguments, warps=8)
    return old, after, second
