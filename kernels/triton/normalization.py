"""Affine map and statistics of an edited map, on rows, on a GPU. The contract stands in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.backends import Declined
from sige.kernels.triton import channels, launch, statistics
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
    rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, old, after, partial, scale, shift,
    tiles, share, map_values, rows_row, rows_column, rest_row, rest_column, sums_row, sums_column, FIRST: tl.constexpr,
    EPS: tl.constexpr, POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
    SUM: tl.constexpr, MERGE: tl.constexpr, BT: tl.constexpr, BG: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr,
    BIG: tl.constexpr,
):  # fmt: skip
    # A program takes `share` of the tiles. With SUM it exchanges their sums; with MERGE it makes scale and shift of what it knows:
    # of its own tiles, which are then all there are, or else of PARTS partial sums that an earlier launch left.
    which = tl.program_id(1)
    here = tl.program_id(0) * BG + tl.arange(0, BG)
    if SUM:
        begin = tl.program_id(2) * share
        first, second = statistics.exchanged(
            rows, rest, rest_rows, sums, tile_index, centre, sample, old, which, begin, tl.minimum(begin + share, tiles), rows_row,
            rows_column, rest_row, rest_column, sums_row, sums_column, FIRST, POSITIONS, PER_GROUP, GROUPS, BT, BG, BV, BIG,
        )  # fmt: skip
    else:
        first = tl.zeros((BG,), tl.float64)
        second = tl.zeros((BG,), tl.float64)
        for part in range(PARTS):
            place = partial + (part * tl.num_programs(1) + which) * 2 * GROUPS + here
            first += tl.load(place, mask=here < GROUPS, other=0)
            second += tl.load(place + GROUPS, mask=here < GROUPS, other=0)
    if MERGE:
        mean, rstd = statistics.merged(first, second, totals, after, centre, which, here, map_values, EPS, GROUPS)
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
        place = partial + (tl.program_id(2) * tl.num_programs(1) + which) * 2 * GROUPS + here
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


def prepared(
    rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps, rest=None, rest_rows=None, target=None
):  # fmt: skip
    """How a norm's statistics are cut into programs (a `tiles.Statistics`), and the arguments of kernels that make them, with new
    memory for ``old`` and ``after``; ``target`` is a map that they write to, or None. Declines what no kernel reads."""
    launch.serve(rows, sums, weight, bias, rest, target)
    for part in (centre, totals):
        if part.dtype not in (torch.float64, torch.float32):
            raise Declined(
                f"its kernels read centres and totals in float64 or float32, not {str(part.dtype).removeprefix('torch.')}"
            )
    tiles, batch, device = tile_index.numel(), centre.shape[0], rows.device
    width = rows.shape[1] + (0 if rest is None else rest.shape[1])
    positions, per_group = rows.shape[0] // max(tiles, 1), width // groups
    chosen = cut.statistics(tiles, positions, groups, per_group, rows.element_size())
    arguments = dict(rows=rows, sums=sums, tile_index=tile_index.contiguous(), centre=centre.contiguous())
    arguments.update(totals=totals.contiguous(), sample=_contiguous(sample), weight=_contiguous(weight))
    arguments.update(
        bias=_contiguous(bias), tiles=tiles, map_values=map_values, **channels.beside(rows, rest, rest_rows)
    )
    arguments.update(old=torch.empty(tiles, 2 * groups, dtype=sums.dtype, device=device))
    arguments.update(after=torch.empty(batch, 2 * groups, dtype=totals.dtype, device=device))
    arguments.update(rows_row=rows.stride(0), rows_column=rows.stride(1))
    arguments.update(sums_row=sums.stride(0), sums_column=sums.stride(1), EPS=eps, POSITIONS=positions)
    arguments.update(PER_GROUP=per_group, GROUPS=groups, BT=chosen.together, BG=chosen.beside, BV=chosen.held)
    arguments.update(BIG=launch.big(rows, rest, target))
    return chosen, arguments


def scale_and_shift(chosen, arguments):
    """What `prepared` gave, carried out: scale and shift (B, C) in the rows' dtype."""
    rows, groups, batch = arguments["rows"], arguments["GROUPS"], len(arguments["centre"])
    width = groups * arguments["PER_GROUP"]
    scale, shift = (torch.empty(batch, width, dtype=rows.dtype, device=rows.device) for _ in range(2))
    partial = None
    if chosen.parts > 1:
        partial = torch.empty(chosen.parts, batch, 2 * groups, dtype=torch.float64, device=rows.device)
    arguments = arguments | dict(partial=partial, scale=scale, shift=shift, share=chosen.share, PARTS=chosen.parts)
    arguments.update(BW=triton.next_power_of_2(arguments["PER_GROUP"]))
    grid = (triton.cdiv(groups, chosen.beside), batch)
    launch.run(_statistics, (*grid, chosen.parts), dict(arguments, SUM=True, MERGE=chosen.parts == 1), warps=8)
    if chosen.parts > 1:
        launch.run(_statistics, grid, dict(arguments, SUM=False, MERGE=True), warps=1)
    return scale, shift


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    given = rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps
    chosen, arguments = prepared(*given)
    return arguments["old"], arguments["after"], *scale_and_shift(chosen, arguments)
