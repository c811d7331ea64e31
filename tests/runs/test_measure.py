"""One job measured in this process: what rows a method gets, and what happens to one that fails."""

from types import SimpleNamespace

import pytest
import runner_fakes as fakes

from sige.runs import measure
from sige.runs.errors import JobFailure
from sige.runs.measure import Bench, Runners
from sige.runs.models.zoo import Zoo
from sige.runs.quiet import Others

DENSE_MACS = 55296  # 16x16 positions, 3x3 windows: 256 * 9 * (3*4 + 4*3)


def run(job):
    """(readings by (method, metric), bench)."""
    zoo = Zoo(job["model"], "cpu")
    items = measure.measure(job, zoo, Runners(zoo, job["hardware"]))
    bench = next(items)
    return {(reading.method, reading.metric): reading for reading in items}, bench


@pytest.fixture(scope="module")
def measured():
    """The whole fake job, once."""
    from sige.runs.jobs import expand

    return run(expand(fakes.configuration(), {})[0])


def test_dense_macs_are_counted(measured):
    assert measured[0]["dense", "macs"].value == DENSE_MACS / 1e9


def test_sparse_macs_are_those_of_the_effect(measured):
    assert measured[0]["fake", "macs"].value == 6000 / 1e9
    assert measured[0]["fake", "macs_ratio"].value == DENSE_MACS / 6000


def test_a_dense_method_says_how_large_the_model_is(measured):
    parameters = sum(parameter.numel() for parameter in fakes.Net().parameters())
    assert measured[0]["dense", "params"].value == parameters / 1e6
    assert measured[0]["dense", "weight_bytes"].value == parameters * 4 / 2**20


def test_errors_are_against_the_dense_output(measured):
    assert measured[0]["fake", "error_max"].value == pytest.approx(0.01, abs=1e-6)
    assert measured[0]["fake", "gate"].value == 1


def test_the_error_within_the_mask_exceeds_the_error_over_the_map(measured):
    assert measured[0]["fake", "error_rel_l2_in_mask"].value > measured[0]["fake", "error_rel_l2"].value


def test_the_reference_is_not_compared_with_itself(measured):
    assert ("dense", "error_max") not in measured[0]
    assert ("dense_channels_last", "error_max") in measured[0]


def test_state_is_told_by_kind_and_in_all(measured):
    assert measured[0]["fake", "state_bytes.conv_input"].value == 1.0
    assert measured[0]["fake", "state_bytes.total"].value == 1.5


def test_every_method_has_a_latency_with_an_interval(measured):
    for method in ("dense", "dense_channels_last", "fake"):
        reading = measured[0][method, "latency"]
        assert 0 < reading.lo <= reading.value <= reading.hi and reading.n == 3


def test_set_up_and_recording_have_rows_of_their_own(measured):
    assert measured[0]["fake", "plan_ms"].value == 0.5
    assert measured[0]["fake", "record_ms"].value == 1.0


def test_a_speed_up_is_against_the_fastest_dense_method(measured):
    readings, _ = measured
    fastest = min(("dense", "dense_channels_last"), key=lambda name: readings[name, "latency"].value)
    speedup = readings["fake", "speedup"]
    assert speedup.baseline == fastest
    assert speedup.value == pytest.approx(readings[fastest, "latency"].value / readings["fake", "latency"].value)


def test_efficiency_is_speed_up_over_macs_ratio(measured):
    readings, _ = measured
    expected = readings["fake", "speedup"].value / readings["fake", "macs_ratio"].value
    assert readings["fake", "efficiency"].value == pytest.approx(expected)


def test_the_control_times_one_dense_method_twice(measured):
    readings, bench = measured
    (control,) = [method for method, metric in readings if metric == "aa_control"]
    assert {control, control + "#again"} <= set(bench.samples["latency_ms"])


def test_raw_samples_are_kept_by_round(measured):
    assert [len(samples) for samples in measured[1].samples["latency_ms"].values()] == [3, 3, 3, 3]


def test_shares_of_time_sum_to_one(measured):
    shares = [
        reading.value
        for (method, metric), reading in measured[0].items()
        if method == "dense" and metric.startswith("time_share.")
    ]
    assert sum(shares) == pytest.approx(1)


def test_peak_memory_covers_weights_state_and_maps(measured):
    weights = sum(parameter.numel() * 4 for parameter in fakes.Net().parameters())
    hidden = 16 * 16 * 4 * 4
    assert measured[0]["dense", "peak_memory"].value * 2**20 >= weights + hidden
    assert measured[0]["fake", "peak_memory"].value > 1.5


def test_the_edited_input_equals_the_original_outside_the_mask(measured):
    bench = measured[1]
    difference = (bench.original[0] != bench.edited[0]).any(1)[0]
    assert not (difference & ~bench.mask).any() and difference.any()


def test_a_red_gate_blanks_the_speed_up(jobs):
    readings, _ = run(jobs(method={"fake": {"runner": "runner_fakes", "error": 50.0}})[0])
    assert readings["fake", "gate"].value == 0
    assert (
        "error_rel_l2_in_mask" in readings["fake", "gate"].reason
        and "is above the budget 0.5" in readings["fake", "gate"].reason
    )
    assert ("fake", "speedup") not in readings and ("fake", "efficiency") not in readings
    assert ("fake", "latency") in readings


def test_an_output_that_is_not_finite_has_a_red_gate(jobs):
    readings, _ = run(jobs(method={"fake": {"runner": "runner_fakes", "error": float("inf")}})[0])
    assert readings["fake", "gate"].reason == "the output holds NaN or infinite values"


@pytest.mark.parametrize(
    "where, status, reason",
    [
        pytest.param("record", "error", "ValueError: no recording today", id="recording"),
        pytest.param("step", "oom", "OutOfMemoryError: out of memory: tried to allocate 9 GiB", id="step"),
    ],
)
def test_a_method_that_fails_leaves_the_others_alone(jobs, where, status, reason):
    readings, bench = run(jobs(method={"fake": {"runner": "runner_fakes", "fail": where}})[0])
    assert bench.failures == {"fake": (status, reason)}
    assert ("dense", "latency") in readings
    assert not any(method == "fake" for method, _ in readings)


def test_without_a_dense_method_the_reference_is_made(jobs):
    readings, bench = run(jobs(metric={name: fakes.METRICS[name] for name in ("macs", "error")})[0])
    assert bench.reference_method == "" and readings["fake", "error_max"].value == pytest.approx(0.01, abs=1e-6)


def test_the_papers_protocol_gives_means_under_names_of_their_own(jobs):
    latency = {**fakes.METRICS["latency"], "protocol": "paper"}
    readings, bench = run(jobs(protocol="paper", metric={**fakes.METRICS, "latency": latency})[0])
    samples = bench.samples["latency_paper_ms"]["fake"]
    assert readings["fake", "latency_paper"].value == pytest.approx(sum(samples) / len(samples))
    assert ("fake", "latency") not in readings and ("fake", "speedup_paper") in readings


def test_bfloat16_is_against_a_dense_method_in_bfloat16_alone(jobs):
    methods = {"fake": {"runner": "runner_fakes"}}
    readings, _ = run(
        jobs(method=methods, hardware={"name": "cpu", "device": "cpu", "dtype": "bfloat16", "threads": 1})[0]
    )
    assert ("fake", "speedup") in readings
    float32 = {"dense": {**fakes.DENSE, "dtype": "float32"}}
    readings, _ = run(
        jobs(
            method=methods,
            baseline=float32,
            hardware={"name": "cpu", "device": "cpu", "dtype": "bfloat16", "threads": 1},
        )[0]
    )
    assert ("fake", "speedup") not in readings


def test_an_edit_of_another_size_is_invalid(jobs):
    job = jobs(dataset={"synthetic": {"height": 32, "width": 16}})[0]
    zoo = Zoo(job["model"], "cpu")
    with pytest.raises(
        JobFailure, match=r"edit brush-30 is 32x16, model fake takes 16x16 \(height x width\)."
    ) as failed:
        Bench(job, zoo, Runners(zoo, job["hardware"]))
    assert failed.value.status == "invalid"


def test_one_recording_serves_all_edits_of_one_original(jobs):
    first, second = jobs("brush-5", "brush-30")
    zoo = Zoo(first["model"], "cpu")
    kept = Runners(zoo, first["hardware"])
    used = []
    for job in (first, second):
        bench = Bench(job, zoo, kept)
        bench.prepare()
        used.append(bench.runners["fake"])
    assert used[0] is used[1]


def test_another_original_is_recorded_anew(jobs):
    first, second = jobs("brush-5")[0], jobs("brush-5", seed=1)[0]
    zoo = Zoo(first["model"], "cpu")
    kept = Runners(zoo, first["hardware"])
    used = []
    for job in (first, second):
        bench = Bench(job, zoo, kept)
        bench.prepare()
        used.append(bench.runners["fake"])
    assert used[0] is not used[1]


def test_methods_have_modules_of_their_own_and_shared_weights():
    zoo = Zoo(fakes.MODEL, "cpu")
    one, other = zoo.module("contiguous", "float32"), zoo.module("contiguous", "float32")
    assert one is not other and one.first is not other.first and one.first.weight is other.first.weight


def test_the_order_of_methods_rotates(jobs):
    job = jobs()[0]
    zoo = Zoo(job["model"], "cpu")
    bench = Bench(job, zoo, Runners(zoo, job["hardware"]))
    bench.prepare()
    order, step = [], bench.step
    bench.step = lambda method, **kwargs: (order.append(method), step(method, **kwargs))[1]
    from sige.runs.metrics.latency import _rounds

    _rounds(bench, ["dense", "dense_channels_last", "fake"], 3, 1.0)
    assert [order[place] for place in (0, 3, 6)] == ["dense", "dense", "fake"]
    assert sorted(order[:3]) == sorted(order[3:6]) == sorted(order[6:])
    assert order[:3] != order[3:6] != order[6:]


@pytest.mark.parametrize(
    "shares, counted, taken",
    [
        pytest.param([0.0] * 9, 4, 4, id="quiet"),
        pytest.param([0.0, 0.9] + [0.0] * 9, 4, 5, id="one-disturbed"),
        pytest.param([0.9] * 9, 4, 4, id="all-disturbed"),
    ],
)
def test_a_disturbed_round_is_taken_again(jobs, monkeypatch, shares, counted, taken):
    from sige.runs.metrics import latency

    told = iter(shares)
    monkeypatch.setattr(latency, "Others", lambda: SimpleNamespace(share=lambda: next(told)))
    metric = {**fakes.METRICS, "latency": {**fakes.METRICS["latency"], "rounds": 4, "noise_limit": 0.1}}
    readings, bench = run(jobs(metric=metric)[0])
    assert readings["fake", "latency"].n == readings["fake", "speedup"].n == counted
    assert len(bench.samples["latency_ms"]["fake"]) == len(bench.samples["others_share"]) == taken
    reason = "others took up to 90% of the machine" if min(shares) > 0 else ""
    timed = ("latency", "speedup", "efficiency")
    assert [readings["fake", name].reason for name in timed] == [reason] * len(timed)


def test_a_machine_of_our_own_has_no_others(monkeypatch):
    """Two readings: the machine was busy for 2 s and this process too, then for 3 s of which 1 s was ours."""
    others = Others()
    readings = iter([(2.0, 2.0, 2.0), (4.0, 5.0, 3.0)])
    others._before, others._cores = (0.0, 0.0, 0.0), 2
    monkeypatch.setattr(others, "_read", lambda: next(readings))
    assert (others.share(), others.share()) == (0.0, 0.5)
