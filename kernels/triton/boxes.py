"""Convolution at whole tiles on Hopper and its like: what the positions of a tile read under one tap is a box of the map.

Such a box needs no row numbers: the tensor memory accelerator (TMA) copies it at one thread's word, zeros beyond the map's edges
included, and so it copies the weights. A program computes one tile or two, which then share what it reads of the weights.

No GPU has run this kernel or compared it with `product`, so it serves only where it is asked for: `used`, ``SIGE_TRITON_BOXES=1``.
"""

import contextlib
import os

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from sige.kernels import weights
from sige.kernels.backends import say_once
from sige.kernels.triton import epilogue, launch, tiles

_ALIGNED = 16  # bytes that a box's rows, and all above them, must start at multiples of
_forced = None


@triton.jit
def _corner(
    index, position, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr
):  # fmt: skip
    """Map, row and column at which the box begins that a tile reads under the first tap; ``position`` is the tile's first one."""
    row = tl.load(
        index + position.to(tl.int64) * (KERNEL_HEIGHT * KERNEL_WIDTH) + KERNEL_HEIGHT * KERNEL_WIDTH // 2
    ).to(tl.int32)
    return row // (HEIGHT * WIDTH), row // WIDTH % HEIGHT - KERNEL_HEIGHT // 2, row % WIDTH - KERNEL_WIDTH // 2


@triton.jit(do_not_specialize=["n"])
def box_product(
    map, weight, index, bias, out, n,
    vector, residual, residual_rows, sample, scale, shift, second, target, positions, target_row, target_column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, BOXES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDEN: tl.constexpr, BIG: tl.constexpr, VECTOR_ROW: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """BOXES tiles (TALL, WIDE), 1 or 2, by BN outputs. Program axis: tiles (fastest) and outputs.

    map: descriptor of the maps (B, HEIGHT, WIDTH, IN), in boxes (1, TALL, WIDE, BK).   weight: descriptor of (taps, OUT, IN), in boxes
    (1, BN, BK).   index: (n, taps) row numbers as `product` has them; only a tile's first position under the middle tap is read, which
    is that position's own row.   out, and from ``vector`` on: see `epilogue.finish`.   BIG: see `product`.
    """
    AREA: tl.constexpr = TALL * WIDE
    TAPS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    STEPS: tl.constexpr = (IN + BK - 1) // BK
    programs = tl.cdiv(n, AREA * BOXES)
    first = tl.program_id(0) % programs * (AREA * BOXES)
    o = tl.program_id(0) // programs * BN
    map_number, y, x = _corner(index, first, HEIGHT, WIDTH, KERNEL_HEIGHT, KERNEL_WIDTH)
    total = tl.zeros((AREA, BN), tl.float32)
    if BOXES == 2:
        # Of an odd number of tiles the last program computes the last one twice, and keeps one.
        other, v, u = _corner(index, tl.minimum(first + AREA, n - AREA), HEIGHT, WIDTH, KERNEL_HEIGHT, KERNEL_WIDTH)
        beside = tl.zeros((AREA, BN), tl.float32)
    for step in range(0, TAPS * STEPS):
        tap = step // STEPS
        c = step % STEPS * BK
        down, across = tap // KERNEL_WIDTH, tap % KERNEL_WIDTH
        right = weight.load([tap, o, c]).reshape(BN, BK).T
        left = map.load([map_number, y + down, x + across, c]).reshape(AREA, BK)
        if WIDEN:
            # Triton's interpreter multiplies the bit patterns of bfloat16 as if they were integers (3.6 to 3.9).
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total)
        if BOXES == 2:
            left = map.load([other, v + down, u + across, c]).reshape(AREA, BK)
            if WIDEN:
                left = left.to(tl.float32)
            beside = tl.dot(left, right, beside)
    column = o + tl.arange(0, BN)
    m = first + tl.arange(0, AREA)
    line = m.to(tl.int64) if BIG else m
    epilogue.finish(
        total, line, column, m < n, column < OUT, OUT, bias, out, vector, residual, residual_rows, sample, scale, shift, second, target,
        positions, target_row, target_column, VECTOR_ROW, ACTIVATION, SLOPE,
    )  # fmt: skip
    if BOXES == 2:
        m += AREA
        line = m.to(tl.int64) if BIG else m
        epilogue.finish(
            beside, line, column, m < n, column < OUT, OUT, bias, out, vector, residual, residual_rows, sample, scale, shift, second,
            target, positions, target_row, target_column, VECTOR_ROW, ACTIVATION, SLOPE,
        )  # fmt: skip


@contextlib.contextmanager
def used(wanted=True):
    """Serve, or do not serve, by boxes inside the ``with`` block, whatever the environment says."""
    global _forced
    before, _forced = _forced, wanted
    try:
        yield
    finally:
        _forced = before


def wanted():
    """Whether boxes are asked for, by `used` or by the environment."""
    return os.environ.get("SIGE_TRITON_BOXES") == "1" if _forced is None else _forced


def cut(source, weight, tiling, rows):
    """:class:`tiles.Boxes` for a convolution of ``rows`` positions that lie as ``tiling`` says (see ``sige.kernels.ops.conv_rows``);
    None where it is better served by row numbers, or must be: on other GPUs, in float32, where memory is not aligned.
    """
    if not wanted():
        return None
    if not launch.copies_boxes(source.device):
        say_once(
            "SIGE_TRITON_BOXES=1 changes nothing: this GPU copies no boxes, which takes compute capability 9 or 10"
        )
        return None
    if weight.dim() != 4 or weight.dtype == torch.float32 or source.dtype != weight.dtype or source.stride(1) != 1:
        return None
    size = weight.element_size()
    addresses = source.data_ptr(), source.stride(0) * size, weights.matrix(weight).data_ptr(), weight.shape[1] * size
    area, taps = tiling[2] * tiling[3], weight.shape[2] * weight.shape[3]
    if rows % area or any(address % _ALIGNED for address in addresses):
        return None
    return tiles.boxes(area, rows // area, *weight.shape[:2], taps, launch.multiprocessors(source.device))


def run(arguments, weight, tiling, chosen):
    """`box_product` with those ``arguments`` of `convolution.rows_product`'s launch that it shares, cut as ``chosen``."""
    height, width, tall, wide = tiling
    source, rows = arguments["source"], arguments["n"]
    outputs, channels, kernel_height, kernel_width = weight.shape
    taps, line = kernel_height * kernel_width, source.stride(0)
    image = TensorDescriptor(
        source, [len(source) // (height * width), height, width, channels], [height * width * line, width * line, line, 1],
        [1, tall, wide, chosen.depth],
    )  # fmt: skip
    matrix = TensorDescriptor(
        weights.matrix(weight),
        [taps, outputs, channels],
        [channels, taps * channels, 1],
        [1, chosen.outputs, chosen.depth],
    )
    given = {name: arguments[name] for name in ("index", "bias", "out", "n", *epilogue.NOTHING)}
    given.update(map=image, weight=matrix, HEIGHT=height, WIDTH=width, IN=channels, OUT=outputs, TALL=tall, WIDE=wide)
    given.update(
        KERNEL_HEIGHT=kernel_height, KERNEL_WIDTH=kernel_width, BOXES=chosen.boxes, BN=chosen.outputs, BK=chosen.depth
    )
    given.update(WIDEN=launch.INTERPRETED and weight.dtype == torch.bfloat16)
    given.update(BIG=launch.big(arguments["target"], elements=rows * outputs))
    programs = triton.cdiv(rows, tall * wide * chosen.boxes) * triton.cdiv(outputs, chosen.outputs)
    launch.run(box_product, (programs,), given, chosen.warps, chosen.stages)
