"""Statistics against cases whose answer is known."""

import numpy as np
import pytest

from sige.analysis import stats


def test_median_of_even_count_is_the_middle():
    assert stats.median([1, 2, 4, 100]) == 3


def test_constant_samples_have_a_point_interval():
    assert stats.bootstrap_median([5.0] * 8) == stats.Interval(5.0, 5.0, 5.0)


def test_same_seed_gives_the_same_interval():
    samples = np.random.default_rng(1).normal(10, 1, 30)
    assert stats.bootstrap_median(samples, seed=3) == stats.bootstrap_median(samples, seed=3)


def test_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = stats.bootstrap_median(rng.lognormal(0, 0.3, 25), resamples=300, seed=trial)
        covered += interval.lo <= 1.0 <= interval.hi
    assert 0.89 <= covered / 200 <= 0.99


def test_ratio_interval_covers_the_true_ratio():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        shared = rng.lognormal(0, 0.2, 25)
        above, below = 3.0 * shared * rng.lognormal(0, 0.05, 25), shared * rng.lognormal(0, 0.05, 25)
        interval = stats.bootstrap_ratio(above, below, resamples=300, seed=trial)
        covered += interval.lo <= 3.0 <= interval.hi
    assert covered / 200 >= 0.89


def test_exact_ratio_under_shared_noise_has_a_point_interval():
    load = np.random.default_rng(2).lognormal(0, 0.5, 21)
    interval = stats.bootstrap_ratio(4.0 * load, load)
    assert interval == pytest.approx((4.0, 4.0, 4.0))


def test_pairing_is_narrower_than_resampling_each_side_alone():
    rng = np.random.default_rng(4)
    load = rng.lognormal(0, 0.4, 41)
    paired = stats.bootstrap_ratio(2 * load * rng.lognormal(0, 0.02, 41), load)
    unpaired = stats.bootstrap_ratio(2 * load[rng.permutation(41)], load)
    assert paired.hi - paired.lo < 0.5 * (unpaired.hi - unpaired.lo)


def test_geometric_mean_of_inverse_ratios_is_one():
    assert stats.geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


def test_noise_floor_of_equal_samples_is_zero():
    assert stats.noise_floor([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.0


def test_noise_floor_is_the_farther_end():
    rng = np.random.default_rng(0)
    first, second = rng.normal(100, 3, 30), rng.normal(100, 3, 30)
    ratio = stats.bootstrap_ratio(first, second)
    assert stats.noise_floor(first, second) == max(abs(ratio.lo - 1), abs(ratio.hi - 1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: stats.median([]), "at least one sample", id="no-samples"),
        pytest.param(lambda: stats.median([1.0, float("nan")]), "must be finite", id="nan"),
        pytest.param(lambda: stats.bootstrap_ratio([1, 2], [1]), "got 2 baseline and 1 method", id="unequal-rounds"),
        pytest.param(lambda: stats.bootstrap_ratio([0.0], [1.0]), "times above zero", id="zero-time"),
        pytest.param(
            lambda: stats.geometric_mean([1.0, 0.0]), "numbers above zero, got 0.0", id="zero-in-geometric-mean"
        ),
        pytest.param(
            lambda: stats.bootstrap_median([1.0], level=95), "level must lie between 0 and 1, got 95", id="level"
        ),
        pytest.param(lambda: stats.bootstrap_median([1.0], resamples=0), "at least 1, got 0", id="no-resamples"),
    ],
)
def test_refuses(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
