"""How long it takes to bring the remembered maps of a step to where they are used, and how much of that an edit has to wait for.

Each method's session is recorded again with a memory budget of two steps, so that all others lie on the next tier: host memory with a
GPU, else the disk (files that were just written: they are read through the system's cache of files). What the edit waits for is
measured with the next step's maps loaded while a step runs, and without.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sige.runs.metrics import Reading
from sige.runs.metrics.travel import all_activations

ORDER = 45


def collect(bench, steps, rounds):
    """Rows in ms a step: ``transfer`` (what this edit reads, loaded while nothing runs), ``transfer.exposed`` (what is left to wait
    for when it is loaded ahead), ``transfer.exposed_share`` of the step's time, and for a dense method
    ``transfer.all_activations``, the outputs of every convolution and linear layer read from a file, or copied to the GPU.

    steps: recorded steps.   rounds: edits with and without loading ahead; medians are given.
    """
    folder = Path(tempfile.mkdtemp(prefix="sige-transfer-"))
    try:
        for method, runner in list(bench.runners.items()):  # one that fails is taken out
            with bench.guard(method):
                if getattr(runner, "session", None) is None:
                    ms = _everything(bench, all_activations(bench.zoo, bench.original), folder, rounds)
                    yield Reading(method, "transfer.all_activations", ms, "ms", n=rounds)
                    continue
                yield from _of_session(bench, method, runner, steps, rounds, folder)
            bench.tick()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_session(bench, method, runner, steps, rounds, folder):
    from sige import Session

    room = {"memory_budget": 2 * runner.session.least_budget, "state_folder": folder}
    session = Session(runner.session.model, runner.session.policy, **room)
    original = bench.zoo.adapt(bench.original, runner.layout, runner.dtype)
    edited = bench.zoo.adapt(bench.edited, runner.layout, runner.dtype)
    forward = bench.zoo.loader.forward
    try:
        with torch.no_grad(), session.record():
            for _ in range(steps):
                forward(runner.module, *original)
        found = {False: [], True: []}
        for _ in range(rounds + 1):  # the first round fills the buffers
            for ahead in found:
                found[ahead].append(_waited(bench, session, runner, edited, steps, ahead))
        bench.samples.setdefault("transfer_ms", {})[method] = {str(ahead): times for ahead, times in found.items()}
        alone, hidden, step = (
            statistics.median(times[1:])
            for times in (
                [waited for waited, _ in found[False]],
                [waited for waited, _ in found[True]],
                [whole for _, whole in found[True]],
            )
        )
    finally:
        session.close()
    yield Reading(method, "transfer", alone, "ms", n=rounds)
    yield Reading(method, "transfer.exposed", hidden, "ms", n=rounds)
    yield Reading(method, "transfer.exposed_share", hidden / step, "fraction", n=rounds)


def _waited(bench, session, runner, edited, steps, ahead):
    """(milliseconds waited for maps, milliseconds altogether) of a step, in an edit of all steps that is taken back."""
    session.prefetch, before = ahead, session.waited
    with torch.no_grad(), session.edit(bench.mask.to(bench.zoo.device), changed=bench.changed):
        bench.zoo.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            bench.zoo.loader.forward(runner.module, *edited)
        bench.zoo.synchronize()
        whole = time.perf_counter() - start
    waited = session.waited - before
    session.undo()
    return waited * 1e3 / steps, whole * 1e3 / steps


def _everything(bench, size, folder, rounds) -> float:
    """Milliseconds to bring ``size`` bytes to the device: from pinned memory to a GPU, else from a file to memory."""
    target = torch.empty(size, dtype=torch.uint8, device=bench.zoo.device)
    if bench.zoo.device.type == "cuda":
        source = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    else:
        path = folder / "everything"
        path.write_bytes(bytes(size))
        source = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    times = []
    for _ in range(rounds + 1):
        bench.zoo.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        bench.zoo.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])
