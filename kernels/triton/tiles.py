"""How a matrix product over active rows is cut into programs, by arithmetic.

No GPU has measured these choices yet. They follow from three facts: a program's accumulators must fit the register file, its
pipeline the shared memory of the smallest card meant (99 KiB a block on sm_86), and an edit of a few hundred rows must still
give every multiprocessor something to do, which splitting the summation (split-K) does when rows and outputs alone do not.
There is no tuning at run time: a first edit would pay for it, and a CUDA graph could not hold it.
"""

import math
from typing import NamedTuple

SHARED_BYTES = 99 << 10
HOPPER_SHARED_BYTES = (
    200 << 10
)  # of 227 KiB; the rest is for barriers and what a product's end exchanges between threads
_LEAST_STEPS = 4  # a part of a split summation shorter than this costs more than it brings
_MOST_PARTS = 16
_STATISTICS_BLOCK = 4096  # elements that a program updating statistics holds
_ROUNDS = 16  # that many blocks it sums one after the other; more are shared out, and merged by another launch
_SHARED_ROUNDS = 4
_SECTOR = 32  # bytes that a GPU reads at once
_LEAST_TENSOR_CORE = 16  # the least side of an operand of tl.dot


class Tiles(NamedTuple):
    """rows x outputs of a program, depth of one step, parts of a split summation, steps of a part, warps and pipeline stages."""

    rows: int
    outputs: int
    depth: int
    parts: int
    steps: int
    warps: int
    stages: int


def _power(value, least, most):
    """The smallest power of two not below ``value``, held between two powers of two."""
    return min(max(1 << max(value - 1, 0).bit_length(), least), most)


def _ceil(value, step):
    return -(-value // step)


def choose(rows, outputs, channels, taps, groups=1, bytes_per_value=2, fused=True, multiprocessors=132, gathered=True):
    """Tiles for ``rows`` active positions, ``outputs`` and ``channels`` of one group and ``taps`` taps.

    ``bytes_per_value`` is that of the operands: 2 or 4. ``fused`` is False where the product is plain float32 on the ordinary
    arithmetic units, which need registers for operands and gain nothing from large tiles. ``gathered`` says that row numbers are read.
    """
    most = 128 if fused and bytes_per_value == 2 else 64
    high, wide = _power(rows, 16, most), _power(outputs, 16, most)
    depth = _power(channels, 16, 64 if bytes_per_value == 2 else 32 if fused else 16)
    # Few channels: taps and channels share a step, so that it is not mostly padding.
    steps = _ceil(taps * channels, depth) if channels < depth else taps * _ceil(channels, depth)

    def programs():
        return _ceil(rows, high) * _ceil(outputs, wide) * groups

    # Smaller tiles before split sums: a split sum is written and read once more.
    while programs() < multiprocessors and max(high, wide) > 64:
        high, wide = (high // 2, wide) if high >= wide else (high, wide // 2)
    # One program reads all parts at the end, 4 bytes a sum: no more of them than it reads operands for.
    balanced = math.isqrt(steps * (high + wide) * depth * bytes_per_value // (4 * high * wide))
    parts = max(1, min(multiprocessors // max(programs(), 1), steps // _LEAST_STEPS, balanced, _MOST_PARTS))
    share = _ceil(steps, parts)
    parts = _ceil(steps, share)
    warps = 8 if high * wide > (64 * 128 if fused else 32 * 64) else 4
    # Steps whose copies are under way; a Hopper keeps one more in shared memory. Where row numbers are read first, Triton places
    # operands half-way between them and the product: twice the stages for as many steps.
    ahead = max(1, min(3 if fused else 2, SHARED_BYTES // ((high + wide) * depth * bytes_per_value) - 1, share))
    stages = 2 * ahead + 1 if gathered else ahead + 1
    return Tiles(high, wide, depth, parts, share, warps, stages)


class Boxes(NamedTuple):
    """Tiles and outputs of a program that reads boxes, depth of one step, warps and pipeline stages."""

    boxes: int
    outputs: int
    depth: int
    warps: int
    stages: int


def boxes(area, count, outputs, channels, taps, multiprocessors):
    """How a product of ``count`` whole tiles of ``area`` positions, ``channels`` and ``outputs`` in 16 bits is cut on Hopper; None
    where that leaves multiprocessors without work, or does not fill a tensor core's 64 rows."""
    if area not in (64, 128):
        return None
    widest = _power(outputs, 16, 256)
    fitting = [
        (area * together, wide)
        for together in (1, 2)
        for wide in sorted({widest, min(widest, 128), min(widest, 64)})
        if area * wide <= 64 * 256  # sums in the registers of eight warps, with what follows a product
        and _ceil(count, together) * _ceil(outputs, wide) >= multiprocessors
    ]
    if not fitting:
        return None
    rows, wide = min(
        fitting, key=lambda sides: 1 / sides[0] + 1 / sides[1]
    )  # the least that is read for a multiplication
    depth = _power(channels, 16, 64)
    stages = min(4, HOPPER_SHARED_BYTES // ((rows + wide) * depth * 2), taps * _ceil(channels, depth))
    return Boxes(rows // area, wide, depth, 8 if rows * wide > 64 * 128 else 4, stages)


def thin(channels, outputs, groups):
    """Whether groups of so many channels and outputs are too thin for tensor cores."""
    return groups > 1 and min(channels, outputs) < _LEAST_TENSOR_CORE


class Statistics(NamedTuple):
    """Values of a tile and group that a program holds, groups and tiles that it takes together, parts of a sum, tiles of a part."""

    held: int
    beside: int
    together: int
    parts: int
    share: int


def statistics(count, positions, groups, per_group, bytes_per_value):
    """How the sums of ``count`` tiles of ``positions``, of ``groups`` groups of ``per_group`` channels, are cut into programs. One
    launch where ``parts`` is 1, else two."""
    most = 1 << 62
    held = _power(positions * per_group, 1, _STATISTICS_BLOCK)
    # As many groups together as fill what is read at once, then as many tiles as fit.
    beside = min(
        _power(_ceil(_SECTOR, per_group * bytes_per_value), 1, most), _power(groups, 1, _STATISTICS_BLOCK // held)
    )
    together = _power(count, 1, _STATISTICS_BLOCK // (held * beside))
    steps = _ceil(positions * per_group, held)  # of one block of tiles
    parts = 1
    if _ceil(count, together) * steps > _ROUNDS:
        parts = _ceil(count, together * max(1, _SHARED_ROUNDS // steps))
    return Statistics(held, beside, together, parts, _ceil(_ceil(count, together), parts) * together)
