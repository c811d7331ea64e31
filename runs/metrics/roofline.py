"""How near an operator of the kernels comes to what the machine can do: its copy bandwidth and its rate of matrix products, measured
in the same rounds as the operator.

A call must move its bytes and multiply its numbers; the slower of the two, at the machine's rates, is the attainable time. Bytes are
moved as fast as a copy that reads and writes as many in all, so that what fits a cache is held against that cache.
"""

import math
import time

import torch

from sige.analysis.stats import bootstrap_median, bootstrap_ratio, median
from sige.kernels import ops
from sige.runs.metrics import Reading
from sige.runs.models.zoo import DTYPES
from sige.runs.quiet import Others, quiet_rounds

ORDER = 65
SIDE = 1024  # of the matrix product
_LEAST_MS, _MOST_CALLS, _LEAST_BYTES = 4.0, 400, 1 << 16


def collect(bench, rounds, noise_limit):
    """Rows ``roofline`` (attainable time over measured time) of each method whose effect tells its ``multiplies`` and ``bytes``, and of
    the first of them ``attainable`` (ms), ``copy_rate`` (GB/s), ``gemm_rate`` (GFLOP/s) and ``copy_bound`` (1 where moving the bytes
    takes longer than multiplying).

    Copy, matrix product and methods take turns within each of ``rounds``; rounds that other processes disturbed by more than
    ``noise_limit`` do not count, as in the metric latency.
    """
    methods = [name for name in bench.runners if hasattr(bench.probes[name].effect, "multiplies")]
    if not methods:
        return
    machine = {name: _Machine(bench, name) for name in methods}
    series = {name: ([], []) for name in methods}  # attainable and measured, ms
    rates, shares, others = {name: ([], []) for name in methods}, [], Others()
    for number in range(rounds):
        for name in methods if number % 2 == 0 else reversed(methods):
            copying, multiplying = machine[name].measure()
            for kept, value in zip(rates[name], (copying, multiplying), strict=True):
                kept.append(value)
            series[name][0].append(machine[name].attainable(copying, multiplying))
            series[name][1].append(bench.step(name).ms)
        shares.append(others.share())
        bench.tick()
    kept = quiet_rounds(shares, noise_limit)
    for name in methods:
        attainable, measured = ([values[number] for number in kept] for values in series[name])
        share = bootstrap_ratio(attainable, measured)
        copying, multiplying = ([values[number] for number in kept] for values in rates[name])
        yield Reading(name, "roofline", share.value, "fraction", lo=share.lo, hi=share.hi, n=len(kept))
        if name == methods[0]:
            for metric, values, unit in (
                ("attainable", attainable, "ms"),
                ("copy_rate", [value / 1e9 for value in copying], "GB/s"),
                ("gemm_rate", [value / 1e9 for value in multiplying], "GFLOP/s"),
            ):
                found = bootstrap_median(values)
                yield Reading(name, metric, found.value, unit, lo=found.lo, hi=found.hi, n=len(kept))
            bound = machine[name].copy_bound(median(copying), median(multiplying))
            yield Reading(name, "copy_bound", float(bound), "bool")


class _Machine:
    """The machine's rates as one method sees them: in its dtype, at its number of bytes."""

    def __init__(self, bench, method):
        self.zoo, self.work = bench.zoo, bench.probes[method].effect
        dtype, device = DTYPES[bench.runners[method].dtype], bench.zoo.device
        self.moved = max(_LEAST_BYTES, self.work.bytes) // 2 * 2
        self.source = torch.zeros(self.moved // 2, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.left, self.right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
        self._calls = {}
        self.measure()  # packs, warms

    def measure(self) -> tuple[float, float]:
        """(bytes moved a second, floating-point operations a second) just now. The product is PyTorch's or our prepacked one,
        whichever is faster."""
        with torch.no_grad():
            copied = self._seconds("copy", lambda: self.target.copy_(self.source))
            product = min(
                self._seconds("mm", lambda: torch.mm(self.left, self.right)),
                self._seconds("linear", lambda: ops.linear_rows(self.left, self.right, None)),
            )
        return self.moved / copied, 2 * SIDE**3 / product

    def attainable(self, copying: float, multiplying: float) -> float:
        """Milliseconds that the method's call takes at these rates."""
        return 1e3 * max(self.work.bytes / copying, 2 * self.work.multiplies / multiplying)

    def copy_bound(self, copying: float, multiplying: float) -> bool:
        """Whether moving the bytes takes longer than multiplying."""
        return self.work.bytes / copying >= 2 * self.work.multiplies / multiplying

    def _seconds(self, name, run):
        """Mean time of a call, of as many as fill a few milliseconds."""
        calls = self._calls.setdefault(name, 1)
        self.zoo.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        self.zoo.synchronize()
        mean = (time.perf_counter() - start) / calls
        if calls == 1:
            self._calls[name] = max(1, min(_MOST_CALLS, math.ceil(_LEAST_MS / 1e3 / max(mean, 1e-9))))
        return mean
