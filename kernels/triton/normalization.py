"""Affine map and statistics of an edited map, on rows, on a GPU. The contract stands in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.backends import Declined
from sige.kernels.triton import launch
from sige.kernels.triton import tiles as cut

_BLOCK = 2048  # elements a program holds


@triton.jit(do_not_specialize=["n"])
def _affine(
    rows, scale, shift, sample, out, n, rows_row, rows_column, scale_row, scale_column, shift_row, shift_column,
    WIDTH: tl.constexpr, BATCHED: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (m < n)[:, None] & (c < WIDTH)[None, :]
    line = m.to(tl.int64)
    values = tl.load(rows + line[:, None] * rows_row + c[None, :] * rows_column, mask=inside).to(tl.float32)
    if BATCHED:
        which = tl.load(sample + m, mask=m < n, other=0).to(tl.int64)
        factor = tl.load(scale + which[:, None] * scale_row + c[None, :] * scale_column, mask=inside)
        offset = tl.load(shift + which[:, None] * shift_row + c[None, :] * shift_column, mask=inside)
    else:
        factor = tl.load(scale + c * scale_column, mask=c < WIDTH)[None, :]
        offset = tl.load(shift + c * shift_column, mask=c < WIDTH)[None, :]
    values = values * factor.to(tl.float32) + offset.to(tl.float32)
    tl.store(out + line[:, None] * WIDTH + c[None, :], values.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tiles", "share", "map_values"])
def _statistics(
    rows, sums, tile_index, centre, totals, sample, weight, bias, old, after, partial, scale, shift,
    tiles, share, map_values, rows_row, rows_column, sums_row, sums_column,
    EPS: tl.constexpr, POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
    SUM: tl.constexpr, MERGE: tl.constexpr, BT: tl.constexpr, BG: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    # A program takes BG groups of one sample and `share` of the tiles, BT at a time. With SUM it sums these and exchanges the
    # remembered sums for the new ones; with MERGE it knows what the edit adds to the totals and makes scale and shift of them. What
    # it knows comes from its own tiles, which are then all there are, or else from PARTS partial sums that an earlier launch left.
    # Each sum has a fixed order: results do not change from run to run.
    which = tl.program_id(1)
    here = tl.program_id(0) * BG + tl.arange(0, BG)
    total = which * 2 * GROUPS + here
    first = tl.zeros((BG,), tl.float64)
    second = tl.zeros((BG,), tl.float64)
    if SUM:
        pair = tl.arange(0, BT * BG)
        group = tl.program_id(0) * BG + pair % BG
        middle = tl.load(centre + which * GROUPS + group, mask=group < GROUPS, other=0).to(tl.float32)
        begin = tl.program_id(2) * share
        end = tl.minimum(begin + share, tiles)
        count: tl.constexpr = POSITIONS * PER_GROUP
        for start in range(begin, end, BT):
            tile = start + pair // BG
            mine = (tile < end) & (group < GROUPS)
            if sample is not None:
                mine &= tl.load(sample + tile, mask=mine, other=-1) == which
            corner = tile.to(tl.int64) * POSITIONS * rows_row + group * PER_GROUP * rows_column
            ones = tl.zeros((BT * BG, BV), tl.float32)
            squares = tl.zeros((BT * BG, BV), tl.float32)
            for value in range(0, count, BV):
                v = value + tl.arange(0, BV)
                place = corner[:, None] + (v // PER_GROUP * rows_row + v % PER_GROUP * rows_column)[None, :]
                inside = mine[:, None] & (v < count)[None, :]
                apart = tl.load(rows + place, mask=inside, other=0).to(tl.float32) - middle[:, None]
                apart = tl.where(inside, apart, 0.0)
                ones += apart
                squares += apart * apart
            one = tl.sum(ones, 1).to(sums.dtype.element_ty)
            square = tl.sum(squares, 1).to(sums.dtype.element_ty)
            row = tl.load(tile_index + tile, mask=mine, other=0).to(tl.int64) * sums_row + group * sums_column
            kept = tile.to(tl.int64) * 2 * GROUPS + group
            one_before = tl.load(sums + row, mask=mine, other=0)
            square_before = tl.load(sums + row + GROUPS * sums_column, mask=mine, other=0)
            tl.store(old + kept, one_before, mask=mine)
            tl.store(old + kept + GROUPS, square_before, mask=mine)
            tl.store(sums + row, one, mask=mine)
            tl.store(sums + row + GROUPS * sums_column, square, mask=mine)
            # Of a pair that is not mine both are 0.
            first += tl.sum(tl.reshape(one.to(tl.float64) - one_before.to(tl.float64), (BT, BG)), 0)
            second += tl.sum(tl.reshape(square.to(tl.float64) - square_before.to(tl.float64), (BT, BG)), 0)
    else:
        for part in range(PARTS):
            place = partial + part * tl.num_programs(1) * 2 * GROUPS + total
            first += tl.load(place, mask=here < GROUPS, other=0)
            second += tl.load(place + GROUPS, mask=here < GROUPS, other=0)
    if MERGE:
        first += tl.load(totals + total, mask=here < GROUPS, other=0).to(tl.float64)
        second += tl.load(totals + total + GROUPS, mask=here < GROUPS, other=0).to(tl.float64)
        tl.store(after + total, first.to(after.dtype.element_ty), mask=here < GROUPS)
        tl.store(after + total + GROUPS, second.to(after.dtype.element_ty), mask=here < GROUPS)
        values = map_values.to(tl.float64)
        first, second = first / values, second / values
        rstd = 1 / tl.sqrt(tl.maximum(second - first * first, 0) + EPS)
        mean = tl.load(centre + which * GROUPS + here, mask=here < GROUPS, other=0).to(tl.float64) + first
        inner = tl.arange(0, BW)
        channel = here[:, None] * PER_GROUP + inner[None, :]
        inside = (here < GROUPS)[:, None] & (inner < PER_GROUP)[None, :]
        factor = tl.broadcast_to(rstd[:, None], (BG, BW))
        if weight is not None:
            factor *= tl.load(weight + channel, mask=inside, other=0).to(tl.float64)
        offset = -mean[:, None] * factor
        if bias is not None:
            offset += tl.load(bias + channel, mask=inside, other=0).to(tl.float64)
        channel += which * GROUPS * PER_GROUP
        tl.store(scale + channel, factor.to(tl.float32).to(scale.dtype.element_ty), mask=inside)
        tl.store(shift + channel, offset.to(tl.float32).to(shift.dtype.element_ty), mask=inside)
    else:
        place = partial + tl.program_id(2) * tl.num_programs(1) * 2 * GROUPS + total
        tl.store(place, first, mask=here < GROUPS)
        tl.store(place + GROUPS, second, mask=here < GROUPS)


def affine_rows(rows, scale, shift, sample):
    launch.serve(rows, scale, shift)
    sample = None if sample is None else sample.contiguous()
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    count, width = rows.shape
    columns = min(triton.next_power_of_2(width), 256)
    lines = max(1, min(_BLOCK // columns, triton.next_power_of_2(max(count, 1))))
    arguments = dict(rows=rows, scale=scale, shift=shift, sample=sample, out=out, n=count)
    arguments.update(rows_row=rows.stride(0), rows_column=rows.stride(1), scale_row=scale.stride(0))
    arguments.update(scale_column=scale.stride(1), shift_row=shift.stride(0), shift_column=shift.stride(1))
    arguments.update(WIDTH=width, BATCHED=sample is not None, BM=lines, BC=columns)
    launch.run(_affine, (triton.cdiv(count, lines), triton.cdiv(width, columns)), arguments)
    return out


def _contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    launch.serve(rows, sums, weight, bias)
    for part in (centre, totals):
        if part.dtype not in (torch.float64, torch.float32):
            raise Declined(
                f"its kernels read centres and totals in float64 or float32, not {str(part.dtype).removeprefix('torch.')}"
            )
    tiles, batch, width, device = tile_index.numel(), centre.shape[0], rows.shape[1], rows.device
    positions, per_group = rows.shape[0] // max(tiles, 1), width // groups
    held, beside, together, parts, share = cut.statistics(tiles, positions, groups, per_group, rows.element_size())
    old = torch.empty(tiles, 2 * groups, dtype=sums.dtype, device=device)
    after = torch.empty(batch, 2 * groups, dtype=totals.dtype, device=device)
    scale, shift = (torch.empty(batch, width, dtype=rows.dtype, device=device) for _ in range(2))
    partial = None if parts == 1 else torch.empty(parts, batch, 2 * groups, dtype=torch.float64, device=device)
    arguments = dict(rows=rows, sums=sums, tile_index=tile_index.contiguous(), centre=centre.contiguous())
    arguments.update(totals=totals.contiguous(), sample=_contiguous(sample), weight=_contiguous(weight))
    arguments.update(bias=_contiguous(bias), old=old, after=after, partial=partial, scale=scale, shift=shift)
    arguments.update(tiles=tiles, share=share, map_values=map_values, rows_row=rows.stride(0))
    arguments.update(rows_column=rows.stride(1), sums_row=sums.stride(0), sums_column=sums.stride(1))
    arguments.update(EPS=eps, POSITIONS=positions, PER_GROUP=per_group, GROUPS=groups, PARTS=parts, BT=together)
    arguments.update(BG=beside, BV=held, BW=triton.next_power_of_2(per_group))
    grid = (triton.cdiv(groups, beside), batch)
    launch.run(_statistics, (*grid, parts), dict(arguments, SUM=True, MERGE=parts == 1), warps=8)
    if parts > 1:
        launch.run(_statistics, grid, dict(arguments, SUM=False, MERGE=True), warps=1)
    return old, after, scale, shift
