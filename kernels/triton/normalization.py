"""Affine map and tile moments on rows, on a GPU. The contract stands in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.triton import launch

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


@triton.jit(do_not_specialize=["n"])
def _moments(
    rows, mean_out, squares_out, n, rows_row, rows_column,
    POSITIONS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, BP: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    # A program takes BP of the n pairs of tile and group. Two passes, mean first: the sum of squares less the square of the sum would
    # lose what a large mean hides. The tile is in the first-level cache the second time.
    pair = tl.program_id(0) * BP + tl.arange(0, BP)
    value = tl.arange(0, BV)
    count: tl.constexpr = POSITIONS * PER_GROUP
    corner = (pair // GROUPS).to(tl.int64) * POSITIONS * rows_row + pair % GROUPS * PER_GROUP * rows_column
    total = tl.zeros((BP, BV), tl.float32)
    for start in range(0, count, BV):
        v = start + value
        place = corner[:, None] + (v // PER_GROUP * rows_row + v % PER_GROUP * rows_column)[None, :]
        total += tl.load(rows + place, mask=(pair < n)[:, None] & (v < count)[None, :], other=0).to(tl.float32)
    mean = tl.sum(total, 1) / count
    total = tl.zeros((BP, BV), tl.float32)
    for start in range(0, count, BV):
        v = start + value
        place = corner[:, None] + (v // PER_GROUP * rows_row + v % PER_GROUP * rows_column)[None, :]
        inside = (pair < n)[:, None] & (v < count)[None, :]
        centred = tl.load(rows + place, mask=inside, other=0).to(tl.float32) - mean[:, None]
        total += tl.where(inside, centred * centred, 0.0)
    tl.store(mean_out + pair, mean, mask=pair < n)
    tl.store(squares_out + pair, tl.sum(total, 1), mask=pair < n)


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


def tile_moments(rows, tiles, groups):
    launch.serve(rows)
    moments = [torch.empty(tiles, groups, dtype=torch.float32, device=rows.device) for _ in range(2)]
    if tiles == 0:
        return tuple(moments)
    positions, per_group = rows.shape[0] // tiles, rows.shape[1] // groups
    held = min(triton.next_power_of_2(positions * per_group), _BLOCK)
    pairs = tiles * groups
    together = min(triton.next_power_of_2(pairs), max(1, _BLOCK // held))
    arguments = dict(rows=rows, mean_out=moments[0], squares_out=moments[1], n=pairs, rows_row=rows.stride(0))
    arguments.update(rows_column=rows.stride(1), POSITIONS=positions, PER_GROUP=per_group, GROUPS=groups)
    arguments.update(BP=together, BV=held)
    launch.run(_moments, (triton.cdiv(pairs, together),), arguments)
    return tuple(moments)
