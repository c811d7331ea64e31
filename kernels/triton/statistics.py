"""What a program knows of a group norm after an edit: see ``sige.kernels.ops.update_statistics_``.

A program takes BG groups of one sample, ``here``, and of the tiles those from ``begin`` to ``end``, BT at a time. Each sum has a fixed
order: results do not change from run to run.
"""

import triton
import triton.language as tl

from sige.kernels.triton import channels


@triton.jit
def exchanged(
    rows, rest, rest_rows, sums, tile_index, centre, sample, old, which, begin, end, rows_row, rows_column, rest_row, rest_column,
    sums_row, sums_column, FIRST: tl.constexpr, POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BT: tl.constexpr, BG: tl.constexpr, BV: tl.constexpr, BIG: tl.constexpr,
):  # fmt: skip
    """The remembered sums exchanged for those of ``rows``. Returns what that adds to both totals, (BG,) each, in float64."""
    first = tl.zeros((BG,), tl.float64)
    second = tl.zeros((BG,), tl.float64)
    pair = tl.arange(0, BT * BG)
    group = tl.program_id(0) * BG + pair % BG
    middle = tl.load(centre + which * GROUPS + group, mask=group < GROUPS, other=0).to(tl.float32)
    count: tl.constexpr = POSITIONS * PER_GROUP
    for start in range(begin, end, BT):
        tile = start + pair // BG
        mine = (tile < end) & (group < GROUPS)
        if sample is not None:
            mine &= tl.load(sample + tile, mask=mine, other=-1) == which
        ones = tl.zeros((BT * BG, BV), tl.float32)
        squares = tl.zeros((BT * BG, BV), tl.float32)
        for value in range(0, count, BV):
            row, column, known = places(tile, group, mine, value, POSITIONS, PER_GROUP, BV, BIG)
            apart = channels.taken(
                rows, rest, rest_rows, row, column, known, rows_row, rows_column, rest_row, rest_column, FIRST
            ).to(tl.float32)
            apart = tl.where((row >= 0) & known, apart - middle[:, None], 0.0)
            ones += apart
            squares += apart * apart
        one = tl.sum(ones, 1).to(sums.dtype.element_ty)
        square = tl.sum(squares, 1).to(sums.dtype.element_ty)
        place = tl.load(tile_index + tile, mask=mine, other=0).to(tl.int64) * sums_row + group * sums_column
        kept = tile * (2 * GROUPS) + group
        one_before = tl.load(sums + place, mask=mine, other=0)
        square_before = tl.load(sums + place + GROUPS * sums_column, mask=mine, other=0)
        tl.store(old + kept, one_before, mask=mine)
        tl.store(old + kept + GROUPS, square_before, mask=mine)
        tl.store(sums + place, one, mask=mine)
        tl.store(sums + place + GROUPS * sums_column, square, mask=mine)
        # Of a pair that is not mine both are 0.
        first += tl.sum(tl.reshape(one.to(tl.float64) - one_before.to(tl.float64), (BT, BG)), 0)
        second += tl.sum(tl.reshape(square.to(tl.float64) - square_before.to(tl.float64), (BT, BG)), 0)
    return first, second


@triton.jit
def places(
    tile, group, mine, value, POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, BV: tl.constexpr, BIG: tl.constexpr
):  # fmt: skip
    """Rows, -1 where a pair is not ``mine``, columns and which of them there are, of BV values from ``value`` on, for each pair of a
    tile and a group; as `channels.taken` takes them. BIG: places have 64 bits."""
    v = value + tl.arange(0, BV)
    row = (tile.to(tl.int64) if BIG else tile)[:, None] * POSITIONS + (v // PER_GROUP)[None, :]
    column = group[:, None] * PER_GROUP + (v % PER_GROUP)[None, :]
    return tl.where(mine[:, None], row, -1), column, (v < POSITIONS * PER_GROUP)[None, :]


@triton.jit
def merged(first, second, totals, after, centre, which, here, map_values, EPS: tl.constexpr, GROUPS: tl.constexpr):
    """The totals with what an edit adds to them, written to ``after``. Returns mean and 1/deviation, (BG,) each, in float64."""
    total = which * 2 * GROUPS + here
    first += tl.load(totals + total, mask=here < GROUPS, other=0).to(tl.float64)
    second += tl.load(totals + total + GROUPS, mask=here < GROUPS, other=0).to(tl.float64)
    tl.store(after + total, first.to(after.dtype.element_ty), mask=here < GROUPS)
    tl.store(after + total + GROUPS, second.to(after.dtype.element_ty), mask=here < GROUPS)
    values = map_values.to(tl.float64)
    first, second = first / values, second / values
    rstd = 1 / tl.sqrt(tl.maximum(second - first * first, 0) + EPS)
    mean = tl.load(centre + which * GROUPS + here, mask=here < GROUPS, other=0).to(tl.float64) + first
    return mean, rstd
