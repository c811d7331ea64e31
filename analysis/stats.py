"""Statistics of timings: medians, bootstrap intervals, ratios of paired rounds, and the noise floor of an A/A control.

Pure functions of sequences of numbers. Every random draw is seeded, so the same samples give the same interval.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A point estimate with the ends of its bootstrap percentile interval, all in the unit of the samples."""

    value: float
    lo: float
    hi: float


def median(samples: Sequence[float]) -> float:
    """Return the median of one or more finite numbers."""
    return float(np.median(_samples(samples)))


def bootstrap_median(
    samples: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the median and its percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13)."""
    values = _samples(samples)
    drawn = values[_draws(len(values), resamples, seed)]
    return _interval(float(np.median(values)), np.median(drawn, axis=1), level)


def bootstrap_ratio(
    baseline: Sequence[float],
    method: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return median(baseline) / median(method) with a bootstrap interval, from paired rounds.

    ``baseline[i]`` and ``method[i]`` were timed in the same interleaved round: whole rounds are drawn, so what slows
    both sides at once (another job, a clock change) does not widen the interval. Above 1, ``method`` is faster.
    """
    above, below = _samples(baseline), _samples(method)
    if len(above) != len(below):
        raise ValueError(
            f"paired rounds need equal lengths, got {len(above)} baseline and {len(below)} method samples."
        )
    if (above <= 0).any() or (below <= 0).any():
        raise ValueError("a ratio of times needs times above zero.")
    rounds = _draws(len(above), resamples, seed)
    ratios = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    return _interval(float(np.median(above) / np.median(below)), ratios, level)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers: the right mean of ratios."""
    numbers = _samples(values)
    if (numbers <= 0).any():
        raise ValueError(f"a geometric mean needs numbers above zero, got {float(numbers.min())}.")
    return float(np.exp(np.log(numbers).mean()))


def noise_floor(
    first: Sequence[float], second: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the relative difference that this run cannot tell from none, from an A/A control.

    ``first`` and ``second`` are the same method timed twice in every round; their true ratio is 1, so the farthest
    end of the ratio's interval from 1 is what the machine's noise alone makes of it (0.03 means 3 %).
    """
    ratio = bootstrap_ratio(first, second, level=level, resamples=resamples, seed=seed)
    return max(abs(ratio.lo - 1.0), abs(ratio.hi - 1.0))


def _samples(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0:
        raise ValueError("statistics need at least one sample, got none.")
    if not np.isfinite(values).all():
        raise ValueError("samples must be finite, got NaN or infinity.")
    return values


def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


def _interval(value: float, drawn: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    tail = 50.0 * (1.0 - level)
    lo, hi = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(value, float(lo), float(hi))
