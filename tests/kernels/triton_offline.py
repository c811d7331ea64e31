"""Compiles Triton's kernels for GPUs that are not there, as a program of its own: ``python triton_offline.py CAPABILITY ...``.

The operators are called on tensors without data (device "meta"), and every launch is caught and handed to Triton as a real one is, but
for the launch itself. Prints one JSON object, {"case capability number kernel": facts}: registers a thread, bytes of local memory
(spills) and of shared memory, how often tensor-core instructions, asynchronous copies of 16 bytes, copies of boxes and counts of
programs that arrived occur. What copies boxes is compiled for Hopper alone, which is the first to do that. It must not run with
TRITON_INTERPRET set.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import sige  # noqa: F401
from sige.kernels.triton import boxes, compaction, convolution, gather, launch, normalization, normalized, projection
from sige.kernels.triton import fused as ops

HOPPER = 90
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def empty(*shape, dtype=torch.float16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def numbers(*shape):
    return empty(*shape, dtype=torch.int64)


def convolved(rows, channels, outputs, taps, dtype, groups=1, count=None, tile=0):
    """A 3x3 or 1x1 convolution of ``rows`` positions with ``channels`` in and ``outputs`` out."""
    side = int(taps**0.5)
    index = numbers(rows // tile**2, (tile + side - 1) ** 2) if tile else numbers(rows, taps)
    weight, bias = empty(outputs, channels // groups, side, side, dtype=dtype), empty(outputs, dtype=dtype)
    convolution.rows_product(empty(65536, channels, dtype=dtype), index, weight, bias, groups, (tile, tile), count)


def normalised(dtype):
    rows, scale = empty(800, 128, dtype=dtype), empty(2, 128, dtype=dtype)
    normalization.affine_rows(rows, scale, scale, numbers(800))
    normalization.affine_rows(rows, scale[:1], scale[:1], None)


def updated(dtype, tiles, batch=1, affine=True):
    """Statistics of a map of 128 channels after ``tiles`` tiles of 8x8 changed."""
    rows, sums = empty(tiles * 64, 128, dtype=dtype), empty(1024 * batch, 64, dtype=dtype)
    centre, totals = empty(batch, 32, dtype=torch.float64), empty(batch, 64, dtype=torch.float64)
    weight, sample = empty(128, dtype=dtype) if affine else None, numbers(tiles) if batch > 1 else None
    normalization.update_statistics_(
        rows, sums, numbers(tiles), centre, totals, sample, weight, weight, 32, 1 << 18, 1e-5
    )


def fused(rows, channels, outputs, dtype, taps=9, groups=1, samples=1, tiling=None):
    """A convolution with all that can follow it: vector, residual, scale and shift, silu, into a map."""
    side = int(taps**0.5)
    vector, positions = empty(samples, outputs, dtype=dtype), numbers(rows)
    ops.conv_rows_fused(
        empty(65536, channels, dtype=dtype), numbers(rows + 5, taps),
        empty(outputs, channels // groups, side, side, dtype=dtype), empty(outputs, dtype=dtype), groups, rows,
        vector, empty(65536, outputs, dtype=dtype), positions, numbers(rows) if samples > 1 else None, vector, vector, "silu", 0.0,
        empty(65536, outputs, dtype=dtype), positions, True, tiling=tiling,
    )  # fmt: skip


def in_boxes(tiles, channels, outputs, dtype, tile=(8, 8)):
    """What `fused` computes, at whole tiles of a map of 256x256."""
    with boxes.used():
        fused(tiles * tile[0] * tile[1], channels, outputs, dtype, tiling=(256, 256, *tile))


def joined(dtype):
    """A norm and a shortcut of channels that lie in two tensors, the second ones in a map."""
    rows, rest, places = empty(800, 256, dtype=dtype), empty(65536, 128, dtype=dtype), numbers(800)
    weight, bias = empty(128, 384, 1, 1, dtype=dtype), empty(128, dtype=dtype)
    scale, target = empty(1, 384, dtype=dtype), empty(65536, 384, dtype=dtype)
    ops.activate_rows(rows, scale, scale, None, "silu", 0.0, target, places, rest, places)
    nothing = (None,) * 6
    ops.conv_rows_fused(rows, None, weight, bias, 1, 800, *nothing, "none", 0.0, None, None, True, rest, places)
    ops.conv_rows_fused(
        rows, places, weight, bias, 1, 800, *nothing, "none", 0.0, None, None, True, empty(800, 128, dtype=dtype)
    )


def normalised_into_a_map(dtype, width, tiles, batch=1, rest=0):
    """A norm of 32 groups of ``width`` channels, ``rest`` of them in a map, that ``tiles`` tiles of 8x8 changed, and silu."""
    count = tiles * 64
    rows, sums = empty(count, width - rest, dtype=dtype), empty(1024 * batch, 64, dtype=dtype)
    centre, totals = empty(batch, 32, dtype=torch.float64), empty(batch, 64, dtype=torch.float64)
    sample, weight = numbers(tiles) if batch > 1 else None, empty(width, dtype=dtype)
    normalized.normalize_rows_(
        rows, empty(65536, rest, dtype=dtype) if rest else None, numbers(count) if rest else None, sums, numbers(tiles), centre,
        totals, sample, weight, weight, 32, 1 << 18, 1e-5, "silu", 0.0, empty(65536, width, dtype=dtype), numbers(count),
    )  # fmt: skip


def activated(dtype):
    """A norm's map and each activation, into new rows and into a map."""
    rows, scale, positions = empty(800, 128, dtype=dtype), empty(1, 128, dtype=dtype), numbers(800)
    for activation in ("none", "silu", "relu", "leaky_relu", "gelu"):
        ops.activate_rows(rows, scale, scale, None, activation, 0.2, None, None)
    ops.activate_rows(rows, scale, scale, None, "silu", 0.0, empty(65536, 128, dtype=dtype), positions)
    scale = empty(2, 128, dtype=dtype)
    ops.activate_rows(rows, scale, scale, numbers(800), "silu", 0.0, None, None)


def projected(dtype, rows, channels):
    """Queries, keys and values of ``rows`` tokens, keys and values into maps of 4096."""
    weight, bias = empty(channels, channels, dtype=dtype), empty(channels, dtype=dtype)
    target = empty(4096, channels, dtype=dtype)
    projection.project_rows_(
        empty(rows, channels, dtype=dtype),
        *(weight, bias) * 3,
        target,
        empty(4096, channels, dtype=dtype),
        numbers(rows),
    )


def copied(dtype):
    gather.gather_rows(empty(65536, 128, dtype=dtype), numbers(800))
    gather.scatter_rows_(empty(65536, 128, dtype=dtype), numbers(800), empty(800, 128, dtype=dtype))
    gather.exchange_rows_(empty(65536, 128, dtype=dtype), numbers(800), empty(800, 128, dtype=dtype))


def compacted():
    mask = empty(2, 256, 256, dtype=torch.bool)
    active = compaction.allocate(mask, 2048)
    compaction.compact_(mask, active)
    compaction.tap_rows_(active.rows, numbers(2048, 9), (256, 256), (3, 3), padding=(1, 1))


def cases():
    """Name -> what to call. Sizes are those of a 1 % and a 15 % edit of a pixel U-Net and of a latent one."""
    counted = empty(1, dtype=torch.int32)
    for name, dtype in HALVES.items():
        yield f"conv few rows {name}", lambda dtype=dtype: convolved(800, 128, 128, 9, dtype)
        yield f"conv many rows {name}", lambda dtype=dtype: convolved(20000, 256, 256, 9, dtype)
        yield (
            f"linear {name}",
            lambda dtype=dtype: convolution.linear_rows(
                empty(4096, 320, dtype=dtype), empty(1280, 320, dtype=dtype), empty(1280, dtype=dtype)
            ),
        )
    yield "conv split float16", lambda: convolved(64, 512, 512, 9, torch.float16)
    yield "conv of 3 channels float16", lambda: convolved(800, 3, 128, 9, torch.float16)
    yield "conv counted float16", lambda: convolved(2048, 128, 128, 9, torch.float16, count=counted)
    yield "conv tiles float16", lambda: convolved(16384, 128, 128, 9, torch.float16, tile=4)
    yield "conv groups float16", lambda: convolved(800, 128, 128, 9, torch.float16, groups=4)
    yield "depthwise float16", lambda: convolved(800, 128, 128, 9, torch.float16, groups=128)
    yield "conv few rows float32", lambda: convolved(800, 128, 128, 9, torch.float32)
    yield "conv many rows float32", lambda: convolved(20000, 256, 256, 9, torch.float32)
    yield "conv many rows tf32", lambda: tf32(convolved, 20000, 256, 256, 9, torch.float32)
    for name, dtype in HALVES.items():
        yield f"fused few rows {name}", lambda dtype=dtype: fused(800, 128, 128, dtype)
        yield f"fused many rows {name}", lambda dtype=dtype: fused(20000, 256, 256, dtype, samples=2)
        yield f"boxes, a tile a program {name}", lambda dtype=dtype: in_boxes(160, 128, 128, dtype)
        yield f"boxes, two tiles a program {name}", lambda dtype=dtype: in_boxes(640, 256, 256, dtype)
    yield "boxes of 8x16 float16", lambda: in_boxes(320, 320, 320, torch.float16, (8, 16))
    yield "fused split float16", lambda: fused(64, 512, 512, torch.float16)
    yield "depthwise fused float16", lambda: fused(800, 128, 128, torch.float16, groups=128)
    yield "fused many rows float32", lambda: fused(20000, 256, 256, torch.float32)
    yield "activations float16", lambda: activated(torch.float16)
    yield "copies float16", lambda: copied(torch.float16)
    yield "normalisation float16", lambda: normalised(torch.float16)
    yield "statistics of few tiles float16", lambda: updated(torch.float16, 12)
    yield "statistics of many tiles float16", lambda: updated(torch.float16, 160, batch=2)
    yield "statistics of many tiles float32", lambda: updated(torch.float32, 160, affine=False)
    yield "two tensors float16", lambda: joined(torch.float16)
    for width, tiles, batch, rest in ((128, 12, 1, 0), (512, 1, 1, 0), (384, 12, 2, 128), (128, 160, 1, 0)):
        yield (
            f"norm of {width} channels and {tiles} tiles float16",
            lambda given=(width, tiles, batch, rest): normalised_into_a_map(torch.float16, *given),
        )
    for rows, channels in ((64, 512), (4096, 320)):
        yield f"projections of {rows} rows float16", lambda given=(rows, channels): projected(torch.float16, *given)
    yield "compaction", compacted


def tf32(call, *args):
    torch.set_float32_matmul_precision("high")
    try:
        call(*args)
    finally:
        torch.set_float32_matmul_precision("highest")


class Driver:
    """Of a GPU that is not there; its number is its compute capability."""

    device = None

    def get_current_device(self):
        return self.device

    def get_current_stream(self, _):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.device, 32)


def facts(made):
    """Registers, local and shared memory and tensor-core instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    number = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used)}
    return {
        "registers": number["REG"],
        "local": number["STACK"] + number["LOCAL"],
        "shared": made.metadata.shared,
        "mma": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)", made.asm["ptx"])),
        "wgmma": made.asm["ptx"].count("wgmma.mma_async"),
        "arrivals": len(re.findall(r"\batom\.", made.asm["ptx"])),
        # After a barrier of the block's threads, and with nothing written between that and the count.
        "released": len(
            re.findall(r"\bbar\.sync\b(?:(?!\bst\.global)[\s\S])*?\batom\.global\.gpu\.acq_rel", made.asm["ptx"])
        ),
        "wide_copies": len(re.findall(r"\bcp\.async\.cg\.", made.asm["ptx"])),
        "box_copies": len(re.findall(r"\bcp\.async\.bulk\.tensor\.", made.asm["ptx"])),
    }


def main(capabilities):
    gpu, launches, found = Driver(), [], {}
    driver.set_active(gpu)
    launch.run = lambda kernel, grid, arguments, warps=4, stages=2: launches.append(
        (kernel, grid, dict(arguments), warps, stages)
    )
    for case, call in cases():
        launches.clear()
        call()
        for gpu.device in capabilities:
            for number, (kernel, grid, arguments, warps, stages) in enumerate(launches):
                if kernel is boxes.box_product and gpu.device < HOPPER:
                    continue
                made = kernel.warmup(grid=grid, num_warps=warps, num_stages=stages, **arguments)
                found[f"{case} sm_{gpu.device} {number} {kernel.__name__}"] = facts(made)
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]])
