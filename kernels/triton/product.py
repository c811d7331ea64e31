"""The matrix products behind convolution and linear layers: implicit GEMM over active positions.

Rows of the left operand are never gathered into memory: each step of the summation reads one stretch of channels under one tap,
through the row numbers in ``index``. Taps and channels are one flattened loop, which Triton turns into a pipeline of asynchronous
copies; sums are float32 and leave the registers once, after what `epilogue` does to them. Every output has one program, or one per
part of a split sum; whichever of these comes last adds all parts up, in a fixed order, so that results do not change from run to run.
"""

import triton
import triton.language as tl

from sige.kernels.triton import channels, epilogue


@triton.jit(do_not_specialize=["n"])
def product(
    source, index, weight, bias, out, count, n, source_row, source_column, rest, rest_rows, rest_row, rest_column, partial, arrived,
    vector, residual, residual_rows, sample, scale, shift, second, target, positions, target_row, target_column,
    FIRST: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    TILE: tl.constexpr, AREA: tl.constexpr, WINDOW_WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    STEPS: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, BIG: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    VECTOR_ROW: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """One tile of outputs. Program axes: tiles of rows and outputs (rows fastest, so that neighbours share weights in the second-level
    cache), parts of the sum, groups.

    IN, OUT: channels and outputs of one group; channels from FIRST on lie in ``rest``, see `channels.taken`. ``index``: (n, TAPS) row
    numbers, -1 outside; or, where TILE is not 0, the windows of tiles TILE wide of AREA positions, WINDOW numbers each; or None, where
    row i reads row i (a linear layer). ``out``: (n, groups*OUT), None where raw rows are not wanted. From ``vector`` on: see
    `epilogue.finish`. ``count``: None, or one integer on the device that says how many of the ``n`` rows there are; the others are
    not written. Where the sum is split, ``partial`` is the memory of its float32 parts (PARTS, n, groups*OUT) and ``arrived`` counts
    the programs that are done with theirs, one number a tile of outputs and group: 0 before, and 0 again after. BIG: some tensor has
    2^31 elements or more; otherwise places are 32-bit numbers, which saves registers.
    """
    blocks = tl.cdiv(n, BM)
    limit = n
    if count is not None:
        limit = tl.minimum(tl.load(count).to(tl.int32), n)
    block = tl.program_id(0) % blocks
    part = tl.program_id(1)
    group = tl.program_id(2)
    if block * BM >= limit:
        return
    m = block * BM + tl.arange(0, BM)
    o = tl.program_id(0) // blocks * BN + tl.arange(0, BN)
    here = m < limit
    line = m.to(tl.int64) if BIG else m
    if index is not None:
        if TILE == 0:
            base = line * TAPS
        else:
            cell = m % AREA
            base = line // AREA * WINDOW + cell // TILE * WINDOW_WIDTH + cell % TILE

    total = tl.zeros((BM, BN), tl.float32)
    weights = weight + (group * OUT + o).to(tl.int64)[None, :] * (TAPS * IN)
    columns = source + group * IN * source_column
    for step in range(0, STEPS):
        k = (part * STEPS + step) * BK + tl.arange(0, BK)
        if IN < BK:
            # Few channels: one step reads several taps.
            tap = k // IN
            c = k % IN
            known = k < TAPS * IN
            offset = tap if TILE == 0 else tap // KERNEL_WIDTH * WINDOW_WIDTH + tap % KERNEL_WIDTH
            if index is None:
                row = tl.where(here[:, None] & known[None, :], line[:, None], -1)
            else:
                row = tl.load(index + base[:, None] + offset[None, :], mask=here[:, None] & known[None, :], other=-1)
                row = row if BIG else row.to(tl.int32)
        else:
            stretch = part * STEPS + step
            tap = stretch // ((IN + BK - 1) // BK)
            c = stretch % ((IN + BK - 1) // BK) * BK + tl.arange(0, BK)
            k = tap * IN + c
            if index is None:
                row = tl.where(here & (tap < TAPS), line, -1)
            else:
                offset = tap if TILE == 0 else tap // KERNEL_WIDTH * WINDOW_WIDTH + tap % KERNEL_WIDTH
                row = tl.load(index + base + offset, mask=here & (tap < TAPS), other=-1)
                row = row if BIG else row.to(tl.int32)
            known = (c < IN) & (tap < TAPS)
            row = row[:, None]
        left = channels.taken(
            columns, rest, rest_rows, row, c[None, :], known[None, :], source_row, source_column, rest_row, rest_column, FIRST
        ).to(weight.dtype.element_ty)  # fmt: skip
        right = tl.load(weights + k[:, None], mask=known[:, None] & (o < OUT)[None, :], other=0)
        if WIDEN:
            # Triton's interpreter multiplies the bit patterns of bfloat16 as if they were integers (3.6 to 3.9).
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)

    # The groups stand side by side in a row of outputs.
    across = tl.num_programs(2) * OUT
    column = group * OUT + o
    if PARTS > 1:
        inside = here[:, None] & (o < OUT)[None, :]
        tl.store(partial + (part * n + line)[:, None] * across + column[None, :], total, mask=inside)
        # All of this program's sums are written before it says so, and whoever hears it from all others reads what they wrote.
        tl.debug_barrier()
        done = arrived + group * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(done, 1, sem="acq_rel", scope="gpu") != PARTS - 1:
            return
        tl.store(done, 0)
        total = tl.zeros((BM, BN), tl.float32)
        for each in range(0, PARTS):
            place = (each * n + line)[:, None] * across + column[None, :]
            total += tl.load(partial + place, mask=inside, other=0, cache_modifier=".cg")
    epilogue.finish(
        total, line, column, here, o < OUT, across, bias, out, vector, residual, residual_rows, sample, scale, shift, second,
        target, positions, target_row, target_column, VECTOR_ROW, ACTIVATION, SLOPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def thin_product(
    source, index, weight, bias, out, count, n, source_row, source_column,
    vector, residual, residual_rows, sample, scale, shift, second, target, positions, target_row, target_column,
    IN: tl.constexpr, OUT: tl.constexpr, OUTPUTS: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    TILE: tl.constexpr, AREA: tl.constexpr, WINDOW_WIDTH: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    VECTOR_ROW: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Groups too thin for tensor cores (depthwise above all): one multiplication a tap and channel, outputs across the lanes.

    IN, OUT: channels and outputs of one group; OUTPUTS of all. The other parameters are those of `product`.
    """
    limit = n
    if count is not None:
        limit = tl.minimum(tl.load(count).to(tl.int32), n)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    here = m < limit
    line = m.to(tl.int64)
    if TILE == 0:
        base = line * TAPS
    else:
        cell = m % AREA
        base = line // AREA * WINDOW + cell // TILE * WINDOW_WIDTH + cell % TILE
    total = tl.zeros((BM, BN), tl.float32)
    for tap in range(0, TAPS):
        offset = tap if TILE == 0 else tap // KERNEL_WIDTH * WINDOW_WIDTH + tap % KERNEL_WIDTH
        row = tl.load(index + base + offset, mask=here, other=-1).to(tl.int64)
        inside = (row >= 0)[:, None] & (o < OUTPUTS)[None, :]
        for channel in range(0, IN):
            place = row[:, None] * source_row + (o // OUT * IN + channel)[None, :] * source_column
            left = tl.load(source + place, mask=inside, other=0).to(tl.float32)
            right = tl.load(weight + o.to(tl.int64) * (TAPS * IN) + tap * IN + channel, mask=o < OUTPUTS, other=0)
            total += left * right.to(tl.float32)[None, :]
    epilogue.finish(
        total, line, o, here, o < OUTPUTS, OUTPUTS, bias, out, vector, residual, residual_rows, sample, scale, shift, second, target,
        positions, target_row, target_column, VECTOR_ROW, ACTIVATION, SLOPE,
    )  # fmt: skip
