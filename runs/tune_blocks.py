"""Measure what blocks cost on this machine: ``python -m sige.runs.tune_blocks``. Takes a minute or two; the machine must be idle.

Writes the table by which convolutions run tile by tile or one position at a time, and with which ``block="adaptive"`` searches, in
place of the one that ships (``sige/block_costs_cpu.csv``, or with ``SIGE_BACKEND=composed`` ``sige/block_costs_composed.csv``).
"""

import argparse
import datetime
import functools
import math
import os
import platform
import sys
import time
from pathlib import Path

from sige.runs import allocator, environment, quiet
from sige.runs.errors import UserError

CHANNELS = (64, 128, 320, 640, 1280)
POSITIONS = (64, 256, 1024, 4096, 16384)
_WIDE = 320  # from so many channels on maps are those of a latent, below those of a picture
_MOST_MACS = 4e9  # of one call; times of larger ones follow in proportion
_TIDY_S = 0.002  # a sample lasts at least so long


def map_of(channels):
    """(samples, height, width) of the map that is read: narrow ones are a picture's, wide ones a latent's of 768x768 with guidance."""
    return (2, 96, 96) if channels >= _WIDE else (1, 256, 256)


def cases(channels=CHANNELS, positions=POSITIONS):
    """What is measured: (operator, (rows, columns) or None, channels, tiles or positions)."""
    from sige import apsc

    for width in channels:
        fits = [count for count in positions if count * 9 * width**2 <= _MOST_MACS]
        for count in fits:
            yield from ((operator, None, width, count) for operator in ("conv_rows", "linear_rows", "around"))
        for shape in apsc.SHAPES:
            area = math.prod(shape)
            for count in sorted({max(1, count // area) for count in fits}):
                yield "conv_tiles", shape, width, count


@functools.lru_cache(maxsize=1)
def _operands(channels, device):
    """A map's rows (N, C) and the weight (C, C, 3, 3) and bias (C,) of a convolution from as many channels to as many."""
    import torch

    generator, places = torch.Generator().manual_seed(0), math.prod(map_of(channels))
    source = torch.randn(places, channels, generator=generator).to(device)
    weight = torch.randn(channels, channels, 3, 3, generator=generator).div_(channels).to(device)
    return source, weight, weight[:, 0, 0, 0].contiguous()


def prepared(operator, shape, channels, count, device):
    """A function of no arguments that makes the call to be timed: random rows of a map, tiles scattered over it."""
    import torch
    import torch.nn.functional as F

    from sige import windows
    from sige.active_set import ActiveSet
    from sige.kernels import ops

    source, weight, bias = _operands(channels, device)
    generator, (samples, height, width) = torch.Generator().manual_seed(0), map_of(channels)
    tile = shape or (1, 1)
    grid = torch.zeros(samples, height // tile[0], width // tile[1], dtype=torch.bool)
    grid.view(-1)[torch.randperm(grid.numel(), generator=generator)[:count]] = True
    chosen = ActiveSet.from_tiles(grid, tile, height, width)
    window = windows.canonical_window(height, width)
    if operator == "conv_tiles":
        index = windows.tile_rows(chosen, window).to(device)
        return lambda: ops.conv_tiles(source, index, tile, weight, bias)
    if operator == "conv_rows":
        index = windows.window_rows(chosen, window).to(device)
        return lambda: ops.conv_rows(source, index, weight, bias)
    index = chosen.index.to(device)
    rows = ops.gather_rows(source, index)
    if operator == "linear_rows":
        matrix = weight[:, :, 0, 0].contiguous()
        return lambda: ops.linear_rows(rows, matrix, bias)
    scale = bias[None]
    return lambda: ops.scatter_rows_(source, index, F.silu(ops.affine_rows(rows, scale, scale)))


def seconds(call, synchronize, samples):
    """The least time of ``call`` over ``samples`` samples, after a warm-up: other work on the machine only ever adds."""
    call(), call()
    synchronize()
    begun = time.perf_counter()
    call()
    synchronize()
    repeats = max(1, min(200, int(_TIDY_S / max(time.perf_counter() - begun, 1e-7))))
    least = math.inf
    for _ in range(samples):
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        least = min(least, (time.perf_counter() - begun) / repeats)
    return least


def measure(device, samples, channels=CHANNELS, positions=POSITIONS, say=lambda text: None):
    """Rows of the table, measured on ``device``."""
    import torch

    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    wanted, rows = list(cases(channels, positions)), []
    with torch.inference_mode():
        for number, (operator, shape, width, count) in enumerate(wanted, 1):
            took = seconds(prepared(operator, shape, width, count, device), synchronize, samples)
            tile = shape or (0, 0)
            rows.append(
                dict(operator=operator, rows=tile[0], columns=tile[1], channels=width, count=count, seconds=took)
            )
            if number % 50 == 0 or number == len(wanted):
                say(f"{number} of {len(wanted)}")
    return rows


def origin(device, samples, others):
    """Where the numbers come from, a line a fact."""
    import torch

    from sige.kernels import backends

    threads = torch.get_num_threads()
    return [
        f"made by python -m sige.runs.tune_blocks on {datetime.date.today().isoformat()}, commit {environment.commit() or 'unknown'}",
        f"machine: {environment.machine(device, threads)}; {platform.system()}",
        f"backend {backends.active(device)}, torch {torch.__version__}, float32, allocator {allocator_setting(device)}",
        f"least of {samples} samples; other processes took {others:.0%} of the machine meanwhile",
    ]


def allocator_setting(device):
    """The allocator that the timed process runs with: the one of every timed run."""
    return allocator.resolve("retain", device)


def write(path, rows, about):
    """The table as a file, all of it or nothing."""
    from sige.block_costs import COLUMNS

    lines = [f"# {line}" for line in about] + [",".join(COLUMNS)]
    lines += [",".join(f"{row[name]:.4g}" if name == "seconds" else str(row[name]) for name in COLUMNS) for row in rows]
    aside = Path(path).with_suffix(".part")
    try:
        aside.write_text("\n".join(lines) + "\n")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file with --output.") from error


def main(arguments=None):
    """Run from the command line; returns the exit status."""
    from sige import block_costs

    parser = argparse.ArgumentParser(prog="python -m sige.runs.tune_blocks", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--samples", type=int, default=7, help="samples of each case, of which the least counts")
    parser.add_argument("--output", type=Path, help="where the table goes; default: in place of the one that ships")
    chosen = parser.parse_args(arguments)
    if chosen.samples < 1:
        print(f"--samples={chosen.samples} must be at least 1", file=sys.stderr)
        return 2
    others = quiet.Others()
    rows = measure(chosen.device, chosen.samples, say=lambda text: print(text, flush=True))
    target = chosen.output or block_costs.path(block_costs.priced(chosen.device))
    try:
        write(target, rows, origin(chosen.device, chosen.samples, others.share()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(rows)} times -> {target}")
    return 0


def _with_retained_memory():
    """Start again with the allocator setting of timed runs, which glibc reads before the first allocation only."""
    device = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv[:-1] else "cpu"
    wanted = allocator.environment(allocator_setting(device), dict(os.environ))
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "sige.runs.tune_blocks", *sys.argv[1:]], wanted)


if __name__ == "__main__":
    _with_retained_memory()
    sys.exit(main())
