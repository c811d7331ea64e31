"""Test and time Metal's kernels on this Mac: ``python -m sige.kernels.mps.check`` writes ``metal-check.json`` to send back.

No Apple GPU has run these kernels yet, so what this program finds is news either way. It compares every operator with float64 on the
CPU, then times the kernels against the best that PyTorch's own operators do with the same rows. The file names the chip, the
versions and the kernels' digests, and nothing about whose machine it is.
"""

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from sige.kernels import backends
from sige.kernels.mps import launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of the result's largest number; what has no fractions is exact.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
LAYERS = ((128, 128, 256), (256, 256, 64), (512, 512, 32), (512, 512, 8))  # channels, outputs, side of the map
SHARES = (0.012, 0.05, 0.15, 1.0)  # of the map's positions are active
_SAMPLES = 7
# Which arguments an operator that writes in place writes to, where that is not the first.
_WRITTEN = {"update_statistics_": (1,), "normalize_rows_": (3, 15), "project_rows_": (7, 8)}


def random(*shape, dtype, seed=0):
    """Normally distributed numbers on the CPU, the same ones everywhere."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reads(side, places):
    """(n, 9) int64: the rows that a padded 3x3 convolution of a (1, C, side, side) map reads at flat ``places``, -1 outside."""
    numbers = torch.arange(1, side * side + 1, dtype=torch.float32).view(1, 1, side, side)
    return F.unfold(numbers, 3, padding=1)[0].t().long()[places] - 1


def scattered(count, out_of):
    """``count`` distinct row numbers, ascending, spread over ``out_of`` rows."""
    return torch.randperm(out_of, generator=torch.Generator().manual_seed(1))[:count].sort().values


def cases(dtype):
    """Yields (operator, what it is called with in words, arguments on the CPU)."""
    rows, places = random(400, 24, dtype=dtype), scattered(117, 400)
    for channels, outputs, groups in ((24, 17, 1), (72, 72, 1), (640, 40, 1), (34, 48, 2), (17, 17, 17)):
        for count in (1, 40, 400):
            weight = random(outputs, channels // groups, 3, 3, dtype=dtype, seed=1)
            bias = random(outputs, dtype=dtype, seed=2)
            arguments = (random(400, channels, dtype=dtype), reads(20, scattered(count, 400)), weight, bias, groups)
            yield "conv_rows", f"{count} of 400 rows, {channels} to {outputs}, groups {groups}", arguments
    windows = torch.arange(-1, 143).view(4, 36)
    yield "conv_tiles", "4 tiles of 4x4", (rows, windows, (4, 4), random(17, 24, 3, 3, dtype=dtype, seed=1), None, 1)
    image = random(2, 24, 20, 20, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = random(17, 24, 3, 3, dtype=dtype, seed=1)
    yield "conv_map", "stride 2", (image, weight, random(17, dtype=dtype, seed=2), (2, 2), (1, 1), (1, 1), 1)
    norm = (4, random(24, dtype=dtype, seed=5), random(24, dtype=dtype, seed=6), 1e-5, "silu", 0.0)
    yield "normalize_map", "4 groups, silu", (image, *norm)
    yield "normalize_map", "leaky relu alone", (image, 0, None, None, 1e-5, "leaky_relu", 0.1)
    arguments = (image, weight[:3], random(3, dtype=dtype, seed=2), (1, 1), (1, 1), (1, 1), 1, *norm)
    yield "conv_map_fused", "4 groups, silu, 24 to 3", arguments
    for count, channels, outputs in ((1, 72, 17), (77, 1024, 64), (400, 24, 130)):
        weight, bias = random(outputs, channels, dtype=dtype, seed=1), random(outputs, dtype=dtype, seed=2)
        yield (
            "linear_rows",
            f"{count} rows, {channels} to {outputs}",
            (random(count, channels, dtype=dtype), weight, bias),
        )
    yield "gather_rows", "117 of 400 rows", (rows, places)
    yield "scatter_rows_", "117 of 400 rows", (rows.clone(), places, random(117, 24, dtype=dtype, seed=3))
    yield "scatter_rows_", "from float32", (rows.clone(), places, random(117, 24, dtype=torch.float32, seed=3))
    yield "exchange_rows_", "117 of 400 rows", (rows.clone(), places, random(117, 24, dtype=dtype, seed=3))
    maps = [random(2, 24, dtype=dtype, seed=seed) for seed in (1, 2)]
    yield "affine_rows", "a map for each sample", (rows, *maps, scattered(200, 400).repeat(2) % 2)
    yield "affine_rows", "one map", (rows, maps[0][:1], maps[1][:1], None)
    into = random(500, 24, dtype=dtype, seed=4)
    yield (
        "activate_rows",
        "silu, into a map",
        (rows, *(x[:1] for x in maps), None, "silu", 0.0, into, scattered(400, 500)),
    )
    source, weight, bias = (
        random(400, 24, dtype=dtype),
        random(24, 24, 3, 3, dtype=dtype, seed=1) / 8,
        random(24, dtype=dtype),
    )
    added = random(1, 24, dtype=dtype, seed=5), random(400, 24, dtype=dtype, seed=6), places
    given = (*added, None, maps[0][:1], maps[1][:1])
    given = (source, reads(20, places), weight, bias, 1, 117, *given, "gelu", 0.0, None, None, True)
    yield "conv_rows_fused", "vector, rows of a residual, norm, gelu", given
    centre, totals = torch.zeros(2, 8), torch.full((2, 16), 5e3)
    some, sums = scattered(25, 60), random(60, 16, dtype=dtype, seed=3)
    arguments = (rows + 3, sums, some, centre, totals, some // 30, maps[0][0], maps[1][0], 8, 1440, 1e-5)
    yield "update_statistics_", "25 of 60 tiles of 4x4, 8 groups", arguments
    first, rest, sums = (
        random(400, 14, dtype=dtype) + 3,
        random(900, 10, dtype=dtype, seed=1),
        random(60, 16, dtype=dtype, seed=3),
    )
    arguments = (
        first,
        rest,
        scattered(400, 900),
        sums,
        some,
        centre,
        totals,
        some // 30,
        maps[0][0],
        maps[1][0],
        8,
        1440,
        1e-5,
    )
    arguments += ("silu", 0.0, random(500, 24, dtype=dtype, seed=4), scattered(400, 500))
    yield "normalize_rows_", "25 of 60 tiles of 4x4, 8 groups, of two tensors, silu, into a map", arguments
    layers = [
        x for seed in (1, 2, 3) for x in (random(24, 24, dtype=dtype, seed=seed), random(24, dtype=dtype, seed=seed))
    ]
    tokens = [random(400, 24, dtype=dtype, seed=seed) for seed in (4, 5)]
    yield "project_rows_", "117 of 400 tokens", (random(117, 24, dtype=dtype), *layers, *tokens, places)
    tokens = [random(2, 4, count, 40, dtype=dtype, seed=seed) for seed, count in enumerate((9, 300, 300))]
    yield "attend", "9 queries, 300 keys", (*tokens, None, 40**-0.5)
    edit = torch.zeros(400, dtype=torch.bool).index_fill(0, places, True).view(2, 20, 10)
    yield "compact", "117 of 400 positions", (edit, 128)
    yield "compact", "more positions than the list holds", (edit, 116)


def _on(device, arguments):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]


def _wide(arguments):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]


def _results(operator, result, arguments):
    """What an operator gave, written in place or returned, as a list of float64 tensors on the CPU."""
    found = [] if result is None else [*result] if isinstance(result, tuple) else [result]
    written = [arguments[place] for place in _WRITTEN.get(operator, (0,))] if operator.endswith("_") else []
    return [part.cpu().double() for part in (*written, *found)]


def compare(operator, arguments, device):
    """Run one case on ``device``.

    Returns a dict: ``verdict`` ("right", "wrong", "declined" or "failed"), ``error``, the largest one as a share of the result's
    largest number, and ``why`` where it did not run.
    """
    moved, wide = _on(device, arguments), _wide([x.clone() if isinstance(x, torch.Tensor) else x for x in arguments])
    try:
        got = _results(operator, backends._load("mps", operator)(*moved), moved)
    except backends.Declined as reason:
        return {"verdict": "declined", "why": str(reason)}
    except Exception as error:  # whatever goes wrong on a machine unlike ours is what we want to hear of
        return {"verdict": "failed", "why": f"{type(error).__name__}: {error}"}
    exact = _results(operator, backends._load("reference", operator)(*wide), wide)
    errors = [float(((a - b).abs().max() / b.abs().max().clamp(min=1e-30))) for a, b in zip(got, exact)]
    right = all(error <= TOLERANCE.get(arguments[0].dtype, 0.0) for error in errors)
    return {"verdict": "right" if right else "wrong", "error": max(errors)}


def parity(device):
    """The rows of the comparison: one dict a case."""
    for dtype in DTYPES:
        for operator, case, arguments in cases(dtype):
            about = {"operator": operator, "dtype": launch.NUMBERS[dtype], "case": case}
            yield about | compare(operator, arguments, device)


def _milliseconds(call, synchronize):
    """Median time of ``call`` over `_SAMPLES` samples of at least some milliseconds each, after a warm-up."""
    call()
    synchronize()
    begun = time.perf_counter()
    call()
    synchronize()
    repeats = max(1, min(200, int(0.02 / max(time.perf_counter() - begun, 1e-6))))
    samples = []
    for _ in range(_SAMPLES):
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        samples.append((time.perf_counter() - begun) / repeats * 1e3)
    return statistics.median(samples)


def _gathered(source, index, weight, bias):
    """A convolution at chosen positions from PyTorch's own operators: rows gathered, then one product."""
    rows = source.index_select(0, index.clamp(min=0).flatten()).masked_fill_((index < 0).view(-1, 1), 0)
    return F.linear(rows.view(len(index), -1), weight.permute(0, 2, 3, 1).reshape(len(weight), -1), bias)


def timings(device, synchronize, layers=LAYERS, shares=SHARES):
    """The rows of the timing: milliseconds of a 3x3 convolution at a share of a map's positions, by our kernel, by PyTorch's own
    operators on the same rows, and of the whole map."""
    for dtype in DTYPES:
        for channels, outputs, side in layers:
            source, image, weight, bias = _on(
                device,
                (
                    random(side * side, channels, dtype=dtype),
                    random(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last),
                    random(outputs, channels, 3, 3, dtype=dtype, seed=1),
                    random(outputs, dtype=dtype, seed=2),
                ),
            )
            whole = _milliseconds(lambda: F.conv2d(image, weight, bias, padding=1), synchronize)
            for share in shares:
                count = max(1, round(share * side * side))
                index = reads(side, scattered(count, side * side)).to(device)
                kernel = backends._load("mps", "conv_rows")
                row = {"dtype": launch.NUMBERS[dtype], "channels": channels, "outputs": outputs, "side": side}
                row |= {"active": count, "whole_map_ms": whole}
                row["kernel_ms"] = _milliseconds(lambda: kernel(source, index, weight, bias, 1), synchronize)
                row["composed_ms"] = _milliseconds(lambda: _gathered(source, index, weight, bias), synchronize)
                yield row | {"gflops": 2e-6 * count * 9 * channels * outputs / row["kernel_ms"]}


def _chip():
    asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
    return asked.stdout.strip() or platform.processor()


def machine():
    """What ran: chip, versions, and the digest of each Metal file."""
    digests = {file: hashlib.sha256(launch.source(file).encode()).hexdigest() for file in launch.FILES}
    return {"chip": _chip(), "macos": platform.mac_ver()[0], "torch": torch.__version__, "kernels": digests}


def main(arguments=None):
    """Run it all; returns the exit status: 0 where every case is right, 1 where one is not or there is no Apple GPU."""
    parser = argparse.ArgumentParser(prog="python -m sige.kernels.mps.check", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("metal-check.json"), help="where the results go")
    parser.add_argument("--quick", action="store_true", help="compare only, time nothing")
    chosen = parser.parse_args(arguments)
    if not torch.backends.mps.is_available():
        print("PyTorch finds no Apple GPU here: run this on a Mac with Apple silicon", file=sys.stderr)
        return 1
    compared = []
    for row in parity("mps"):
        compared.append(row)
        said = row.get("why") or f"error {row['error']:.1e}"
        print(f"{row['verdict']:8s} {row['operator']:13s} {row['dtype']:6s} {row['case']}: {said}", flush=True)
    timed = []
    for row in () if chosen.quick else timings("mps", torch.mps.synchronize):
        timed.append(row)
        about = f"{row['dtype']:6s} {row['channels']:4d} to {row['outputs']:4d}, {row['active']:6d} of {row['side']}x{row['side']}"
        print(
            f"{about}: {row['kernel_ms']:8.3f} ms, composed {row['composed_ms']:8.3f}, whole {row['whole_map_ms']:8.3f}"
        )
    chosen.output.write_text(json.dumps({"machine": machine(), "parity": compared, "timings": timed}, indent=1) + "\n")
    wrong = sum(row["verdict"] != "right" for row in compared)
    print(f"{len(compared) - wrong} of {len(compared)} cases are right; please send {chosen.output} back either way")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
