"""Gather and scatter of rows on a GPU: copies at memory speed. The contract stands in ``sige.kernels.ops``.

Beyond the contract, row number -1 stands for "no row": it is what `compaction` fills a list up with, so that a list of fixed
capacity can be used as it is. Gathering it gives zeros, scattering it writes nothing.
"""

import torch
import triton
import triton.language as tl

from sige.kernels.triton import launch

_BLOCK = 4096  # elements a program copies


@triton.jit(do_not_specialize=["n"])
def _gather(source, index, out, n, source_row, source_column, WIDTH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.load(index + m, mask=m < n, other=-1).to(tl.int64)
    inside = (m < n)[:, None] & (c < WIDTH)[None, :]
    values = tl.load(
        source + row[:, None] * source_row + c[None, :] * source_column, mask=inside & (row >= 0)[:, None], other=0
    )
    tl.store(out + m.to(tl.int64)[:, None] * WIDTH + c[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _scatter(
    target, index, rows, old, n, target_row, target_column, rows_row, rows_column,
    WIDTH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.load(index + m, mask=m < n, other=-1).to(tl.int64)
    inside = (row >= 0)[:, None] & (c < WIDTH)[None, :]
    values = tl.load(rows + m.to(tl.int64)[:, None] * rows_row + c[None, :] * rows_column, mask=inside)
    place = target + row[:, None] * target_row + c[None, :] * target_column
    if old is not None:
        # What is there before the write, of "no row" zeros. Rows are distinct: no other program writes here.
        before = tl.load(place, mask=inside, other=0)
        tl.store(
            old + m.to(tl.int64)[:, None] * WIDTH + c[None, :], before, mask=(m < n)[:, None] & (c < WIDTH)[None, :]
        )
    tl.store(place, values.to(target.dtype.element_ty), mask=inside)


def _blocks(rows, width):
    """Tile of a copy: whole rows where they fit. Returns (BM, BC, grid)."""
    columns = min(triton.next_power_of_2(width), 512)
    lines = max(1, min(_BLOCK // columns, triton.next_power_of_2(max(rows, 1))))
    return lines, columns, (triton.cdiv(rows, lines), triton.cdiv(width, columns))


def gather_rows(source, index):
    launch.serve(source)
    index = index.contiguous()
    out = source.new_empty(index.numel(), source.shape[1])
    lines, columns, grid = _blocks(*out.shape)
    arguments = dict(source=source, index=index, out=out, n=index.numel(), source_row=source.stride(0))
    arguments.update(source_column=source.stride(1), WIDTH=source.shape[1], BM=lines, BC=columns)
    launch.run(_gather, grid, arguments)
    return out


def _write(target, index, rows, old=None):
    """Scatter; what was there goes to ``old`` (n, C), contiguous, if given."""
    launch.serve(target, rows)
    index = index.contiguous()
    lines, columns, grid = _blocks(*rows.shape)
    arguments = dict(target=target, index=index, rows=rows, old=old, n=index.numel())
    arguments.update(target_row=target.stride(0), target_column=target.stride(1))
    arguments.update(rows_row=rows.stride(0), rows_column=rows.stride(1), WIDTH=rows.shape[1], BM=lines, BC=columns)
    launch.run(_scatter, grid, arguments)


def scatter_rows_(target, index, rows):
    _write(target, index, rows)


def exchange_rows_(target, index, rows):
    launch.serve(target)
    old = torch.empty(index.numel(), target.shape[1], dtype=target.dtype, device=target.device)
    _write(target, index, rows, old)
    return old
