"""Latency of one step: methods in interleaved rounds of rotated order, ratios by round, and an A/A control.

Nothing counts or profiles while this runs. The raw samples go into the run's record, results/samples/<run_id>.json.
"""

import time

from sige.analysis.stats import bootstrap_median, bootstrap_ratio
from sige.runs.metrics import Reading
from sige.runs.quiet import Others, quiet_rounds

ORDER = 60
AGAIN = "#again"  # the second series of the same method in an A/A control


def collect(bench, rounds, warmup, aa_control, protocol, paper_runs, noise_limit):
    """Rows ``latency``, ``plan_ms``, ``record_ms``, ``speedup``, ``efficiency``, ``aa_control``.

    A ratio is against the fastest dense method of the same dtype in the same run. A method whose gate is red gets no
    ``speedup`` and no ``efficiency``. ``protocol=paper`` gives ``latency_paper`` instead: the mean of ``paper_runs``
    forwards of one method after ``warmup`` others, one method after the other, as the papers timed.

    A round in which other processes took more than ``noise_limit`` of the machine does not count and is taken again,
    half of ``rounds`` more at most; where most are like that, all count and the rows say so. All raw samples are kept.
    """
    if protocol == "paper":
        yield from _one_after_the_other(bench, warmup, paper_runs)
        return
    warm = {
        method: [bench.step(method).ms for _ in range(max(1, warmup, runner.settled_after))][-1]
        for method, runner in bench.runners.items()
    }
    series = list(bench.runners)
    control = _fastest(bench, warm) if aa_control else None
    if control:
        series.append(control + AGAIN)
    samples, plans, shares = _rounds(bench, series, rounds, noise_limit)
    bench.samples |= {"latency_ms": samples, "plan_ms": plans, "others_share": shares}
    kept = quiet_rounds(shares, noise_limit)
    samples, plans = ({name: _only(kept, values) for name, values in kind.items()} for kind in (samples, plans))
    worst = max(shares[number] for number in kept)
    yield from _rows(
        bench, samples, plans, f"others took up to {worst:.0%} of the machine" if worst > noise_limit else ""
    )
    if control:
        ratio = bootstrap_ratio(samples[control], samples[control + AGAIN])
        yield Reading(control, "aa_control", ratio.value, "x", lo=ratio.lo, hi=ratio.hi, n=len(kept), baseline=control)


def _rounds(bench, series, rounds, noise_limit):
    """(milliseconds by series, set-up by series, share of others), one entry a round.

    The order rotates by one each round, every other one backwards.
    """
    samples = {name: [] for name in series}
    plans = {name: [] for name in series}
    shares = []
    others = Others()
    while len(shares) < rounds or _worth_another(shares, rounds, noise_limit):
        shift = len(shares) % len(series)
        order = series[shift:] + series[:shift]
        for name in order if len(shares) % 2 == 0 else reversed(order):
            step = bench.step(name.removesuffix(AGAIN))
            samples[name].append(step.ms)
            if step.plan_ms is not None:
                plans[name].append(step.plan_ms)
        shares.append(others.share())
        bench.tick()
    return samples, plans, shares


def _worth_another(shares, rounds, noise_limit):
    """Whether one more round may help: some were disturbed, most were not, and not half as many were added yet."""
    quiet = sum(share <= noise_limit for share in shares)
    return len(shares) / 2 <= quiet < rounds and len(shares) < rounds + rounds // 2


def _only(kept, values):
    """The entries of some rounds; nothing of a series that has none."""
    return [values[number] for number in kept] if values else []


def _rows(bench, samples, plans, note):
    medians = {}
    for method, runner in bench.runners.items():
        value = bootstrap_median(samples[method])
        medians[method] = value.value
        yield Reading(
            method, "latency", value.value, "ms", lo=value.lo, hi=value.hi, n=len(samples[method]), reason=note
        )
        if plans[method]:
            plan = bootstrap_median(plans[method])
            yield Reading(
                method,
                "plan_ms",
                plan.value,
                "ms",
                scope="edit",
                lo=plan.lo,
                hi=plan.hi,
                n=len(plans[method]),
                reason=note,
            )
        if runner.record_ms is not None:
            yield Reading(method, "record_ms", runner.record_ms, "ms", scope="edit")
    for method, runner in bench.runners.items():
        baseline = _fastest(bench, medians, runner.dtype)
        if baseline in (None, method) or bench.gates.get(method) is False:
            continue
        ratio = bootstrap_ratio(samples[baseline], samples[method])
        n = len(samples[method])
        yield Reading(
            method, "speedup", ratio.value, "x", lo=ratio.lo, hi=ratio.hi, n=n, baseline=baseline, reason=note
        )
        if not runner.dense and bench.probes[method].effect.macs:
            share = bench.probes[method].effect.macs / bench.dense_macs
            yield Reading(
                method,
                "efficiency",
                ratio.value * share,
                "x",
                lo=ratio.lo * share,
                hi=ratio.hi * share,
                n=n,
                baseline=baseline,
                reason=note,
            )


def _fastest(bench, times, dtype=None):
    """The dense method with the smallest time (of one dtype), None where the run has none."""
    dense = [method for method, runner in bench.runners.items() if runner.dense and dtype in (None, runner.dtype)]
    return min(dense, key=times.__getitem__, default=None)


def _one_after_the_other(bench, warmup, runs):
    means = {}
    for method, runner in bench.runners.items():
        for _ in range(max(warmup, runner.settled_after)):
            bench.step(method)
        started = time.perf_counter()
        samples = [bench.step(method).ms for _ in range(runs)]
        bench.samples.setdefault("latency_paper_ms", {})[method] = samples
        bench.samples.setdefault("latency_paper_wall_s", {})[method] = time.perf_counter() - started
        means[method] = sum(samples) / runs
        bench.tick()
        yield Reading(method, "latency_paper", means[method], "ms", n=runs, reason="mean, one method after the other")
    for method, runner in bench.runners.items():
        baseline = _fastest(bench, means, runner.dtype)
        if baseline not in (None, method) and bench.gates.get(method) is not False:
            yield Reading(method, "speedup_paper", means[baseline] / means[method], "x", n=runs, baseline=baseline)
