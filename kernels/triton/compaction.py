"""From a mask to active rows, on the device: no number comes back to the host, so a CUDA graph holds it.

A list of fixed capacity is filled up with -1 behind its rows; its true length is data beside it. When a mask has more active
positions than the capacity, the length says so and the list is all -1: half an edit is never taken for a whole one.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sige.kernels.triton import launch

_BLOCK = 1024  # positions a program looks at


class ActiveRows(NamedTuple):
    """A list of active rows, on the device.

    rows: (capacity,) int64, sorted flat row numbers, then -1.   count: (1,) int32, how many there are, which may exceed the capacity.
    blocks: (number of programs,) int32, working space.
    """

    rows: torch.Tensor
    count: torch.Tensor
    blocks: torch.Tensor

    def overflowed(self):
        """Whether the last mask did not fit, as a bool tensor on the device."""
        return self.count > self.rows.numel()

    def check(self):
        """Number of active rows; waits for the device. Raises ValueError when they did not fit."""
        count = int(self.count)
        if count > self.rows.numel():
            raise ValueError(
                f"the mask has {count} active positions and the list holds {self.rows.numel()}: use a larger capacity"
            )
        return count


def allocate(mask, capacity):
    """Buffers for masks like ``mask`` (B, H, W) with at most ``capacity`` active positions."""
    if capacity < 1:
        raise ValueError(f"capacity {capacity} holds no row: it must be at least 1")
    device = mask.device
    return ActiveRows(
        torch.empty(capacity, dtype=torch.int64, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
        torch.empty(triton.cdiv(mask.numel(), _BLOCK), dtype=torch.int32, device=device),
    )


@triton.jit
def _count(mask, blocks, POSITIONS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    on = tl.load(mask + place, mask=place < POSITIONS, other=0) != 0
    tl.store(blocks + tl.program_id(0), tl.sum(on.to(tl.int32), 0))


@triton.jit
def _write(
    mask, blocks, rows, count, POSITIONS: tl.constexpr, CAPACITY: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCKS_POWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Each program adds up the counts of all blocks before its own: a few hundred numbers, fewer than a second pass would cost.
    program = tl.program_id(0)
    others = tl.arange(0, BLOCKS_POWER)
    counts = tl.load(blocks + others, mask=others < BLOCKS, other=0)
    before = tl.sum(tl.where(others < program, counts, 0), 0)
    total = tl.sum(counts, 0)
    fits = total <= CAPACITY
    place = program * BLOCK + tl.arange(0, BLOCK)
    on = tl.load(mask + place, mask=place < POSITIONS, other=0) != 0
    rank = before + tl.cumsum(on.to(tl.int32), 0) - 1
    tl.store(rows + rank, place.to(tl.int64), mask=on & fits)
    # The same programs fill up what is left of the list; there are enough of them for mask and list.
    empty = (place < CAPACITY) & ((place >= total) | (total > CAPACITY))
    tl.store(rows + place, tl.full((BLOCK,), -1, tl.int64), mask=empty)
    if program == 0:
        tl.store(count, total)


def compact_(mask, active):
    """Write the active positions of ``mask`` (B, H, W) bool into ``active`` (see `allocate`), sorted; the host waits for nothing.

    Raises ValueError when the buffers were made for a mask of another size.
    """
    positions, blocks = mask.numel(), triton.cdiv(mask.numel(), _BLOCK)
    if active.blocks.numel() != blocks:
        raise ValueError(
            f"the buffers were made for a mask of another size than {tuple(mask.shape)}: allocate new ones"
        )
    mask = mask.contiguous().view(torch.uint8)
    arguments = dict(mask=mask, blocks=active.blocks, POSITIONS=positions, BLOCK=_BLOCK)
    launch.run(_count, (blocks,), arguments)
    capacity = active.rows.numel()
    arguments.update(rows=active.rows, count=active.count, CAPACITY=capacity, BLOCKS=blocks)
    arguments.update(BLOCKS_POWER=triton.next_power_of_2(blocks))
    launch.run(_write, (max(blocks, triton.cdiv(capacity, _BLOCK)),), arguments)


def compact(mask, capacity):
    launch.on_gpu(mask)
    active = allocate(mask, capacity)
    compact_(mask, active)
    return active.rows, active.count


@triton.jit
def _taps(
    rows, index, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr, PADDING_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = place % TAPS
    row = tl.load(rows + place // TAPS, mask=place < CAPACITY * TAPS, other=-1)
    y = row // OUT_WIDTH % OUT_HEIGHT * STRIDE_Y - PADDING_Y + tap // KERNEL_WIDTH * DILATION_Y
    x = row % OUT_WIDTH * STRIDE_X - PADDING_X + tap % KERNEL_WIDTH * DILATION_X
    inside = (row >= 0) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    read = (row // (OUT_WIDTH * OUT_HEIGHT) * HEIGHT + y) * WIDTH + x
    tl.store(index + place, tl.where(inside, read, -1), mask=place < CAPACITY * TAPS)


def tap_rows_(rows, index, size, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """Write into ``index`` (capacity, kh*kw) int64 what `conv_rows` needs at the output positions ``rows`` (capacity,).

    ``size`` is (H, W) of the input map; the others are the convolution's, as pairs. A row -1 reads nothing under any tap.
    """
    taps = kernel[0] * kernel[1]
    out = [(size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    arguments = dict(rows=rows, index=index, HEIGHT=size[0], WIDTH=size[1], OUT_HEIGHT=out[0], OUT_WIDTH=out[1])
    arguments.update(TAPS=taps, KERNEL_WIDTH=kernel[1], STRIDE_Y=stride[0], STRIDE_X=stride[1])
    arguments.update(PADDING_Y=padding[0], PADDING_X=padding[1], DILATION_Y=dilation[0], DILATION_X=dilation[1])
    arguments.update(CAPACITY=rows.numel(), BLOCK=_BLOCK)
    launch.run(_taps, (triton.cdiv(rows.numel() * taps, _BLOCK),), arguments)
