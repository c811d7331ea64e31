"""Convolution and linear layer on rows, on a GPU. The contract stands in ``sige.kernels.ops``.

Nothing is gathered or copied on the way: the source map is read where it lies, with whatever strides it has.
"""

import torch
import torch.nn.functional as F
import triton

from sige.kernels import weights
from sige.kernels.backends import Declined
from sige.kernels.kept import Kept
from sige.kernels.triton import boxes, epilogue, launch, product, tiles
from sige.kernels.triton import channels as of_two

_arrived = Kept()


def rows_product(
    source, index, weight, bias, groups=1, tile=(0, 0), count=None, dtype=None, rows=None, raw=True, after=None, rest=None,
    rest_rows=None, tiling=None,
):  # fmt: skip
    """The product behind `conv_rows`, `conv_tiles`, `linear_rows` and `conv_rows_fused`.

    Returns (n, O) in ``dtype``, the weight's unless given; None where ``raw`` rows are not wanted.

    source: (N, C) of any strides.   index: (n, taps), (T, window) with ``tile`` the (h, w) of tiles, or None (row i reads row i).
    weight: (O, C/groups, kh, kw) or (O, C).   bias: (O,) or None.
    count: None, or an integer tensor of one element on the device: only so many rows are computed, the others are left unwritten.
    rows: None, or how many rows to compute: the first ones.   after: what else becomes of the sums: arguments of `epilogue.finish`.
    rest, rest_rows: None, or further channels of ``source``, as `conv_rows_fused` has them; groups is then 1.
    tiling: None, or how the positions lie, as `conv_rows` has it.
    """
    launch.serve(source, weight, bias, rest)
    height, width = weight.shape[2:] if weight.dim() == 4 else (1, 1)
    if rows is None:
        rows = source.shape[0] if index is None else index.shape[0] * max(tile[0] * tile[1], 1)
    outputs, channels, taps = weight.shape[0], weight.shape[1], height * width
    out = torch.empty(rows, outputs, dtype=dtype or weight.dtype, device=source.device) if raw else None
    if rows == 0:
        return out
    window = (tile[0] + height - 1) * (tile[1] + width - 1) if tile[1] else 0
    arguments = dict(source=source, index=None if index is None else index.contiguous(), bias=bias, out=out, n=rows)
    arguments.update(weight=weights.matrix(weight) if weight.dim() == 4 else weight.contiguous(), count=count)
    arguments.update(source_row=source.stride(0), source_column=source.stride(1), IN=channels, OUT=outputs // groups)
    arguments.update(TAPS=taps, KERNEL_WIDTH=width, TILE=tile[1], AREA=tile[0] * tile[1])
    arguments.update(WINDOW_WIDTH=tile[1] + width - 1, WINDOW=window)
    after = after or epilogue.NOTHING
    by_box = None
    if tiling is not None and groups == 1 and rest is None and count is None:
        by_box = boxes.cut(source, weight, tiling, rows)
    if by_box is not None:
        boxes.run(arguments | after, weight, tiling, by_box)
    elif tiles.thin(channels, outputs // groups, groups):
        _launch_thin(arguments | after, rows, outputs)
    else:
        _launch(arguments | after | of_two.beside(source, rest, rest_rows), rows, groups, weight)
    return out


def _launch(arguments, rows, groups, weight):
    """`product` over ``groups``; ``weight`` as the caller gave it."""
    source, index, width = arguments["source"], arguments["index"], weight.shape[0]
    fused = weight.dtype != torch.float32 or launch.precise() == "tf32"
    chosen = tiles.choose(
        rows, arguments["OUT"], arguments["IN"], arguments["TAPS"], groups, weight.element_size(), fused,
        launch.multiprocessors(weight.device), index is not None,
    )  # fmt: skip
    arguments.update(PARTS=chosen.parts, STEPS=chosen.steps, BM=chosen.rows, BN=chosen.outputs, BK=chosen.depth)
    arguments.update(PRECISION=launch.precise(), WIDEN=launch.INTERPRETED and weight.dtype == torch.bfloat16)
    big = launch.big(source, index, arguments["rest"], arguments["target"], elements=chosen.parts * rows * width)
    arguments.update(BIG=big, partial=None, arrived=None)
    blocks = triton.cdiv(rows, chosen.rows) * triton.cdiv(arguments["OUT"], chosen.outputs)
    if chosen.parts > 1:
        partial = torch.empty(chosen.parts, rows, width, dtype=torch.float32, device=source.device)
        arguments.update(partial=partial, arrived=_counters(weight))
    launch.run(product.product, (blocks, chosen.parts, groups), arguments, chosen.warps, chosen.stages)


def _counters(weight):
    """Zeros to count the programs of a split sum by, of one weight: every launch leaves them at 0, so that the next, which may be a
    CUDA graph's, finds them so. Launches with one weight must therefore follow one another, as those of one stream do. A sum is split
    only where its tiles are fewer than the multiprocessors.

    RuntimeError where a graph is captured before the weight was ever multiplied by: the zeros would come with the graph's first replay.
    """
    device = weight.device

    def make():
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a split sum has no counters yet: run the step once before it is captured")
        return torch.zeros(launch.multiprocessors(device), dtype=torch.int32, device=device)

    return _arrived.of(weight, make)


def _launch_thin(arguments, rows, outputs):
    wide = min(triton.next_power_of_2(outputs), 64)
    high = min(triton.next_power_of_2(rows), 2048 // wide)
    arguments.update(OUTPUTS=outputs, BM=high, BN=wide)
    launch.run(product.thin_product, (triton.cdiv(rows, high), triton.cdiv(outputs, wide)), arguments)


def conv_rows(source, index, weight, bias, groups, tiling=None):
    return rows_product(source, index, weight, bias, groups, tiling=tiling)


def conv_tiles(source, index, tile, weight, bias, groups):
    # The windows' overlap is left to the caches: neighbouring positions read the same rows at nearly the same time.
    return rows_product(source, index, weight, bias, groups, tile)


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    # A dense convolution is the vendor library's: what the model itself would call, in the layout that the rest of the step uses.
    # It keeps torch's own TF32 switch for convolutions, so that a level that runs dense equals the model's own.
    image = image.contiguous(memory_format=torch.channels_last)
    out = F.conv2d(image, weight, bias, stride, padding, dilation, groups)
    return out.contiguous(memory_format=torch.channels_last)


def linear_rows(rows, weight, bias):
    if rows.dtype != weight.dtype:
        raise Declined(f"a linear layer's rows ({rows.dtype}) and weight ({weight.dtype}) must have one dtype")
    return rows_product(rows, None, weight, bias)
