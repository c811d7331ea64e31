"""Counting without arithmetic: ``hardware=meta`` builds and runs on tensors that have shapes and no data."""

import dataclasses

import pytest
import runner_fakes as fakes
import torch

from sige.runs import measure
from sige.runs.errors import UserError
from sige.runs.jobs import expand
from sige.runs.measure import Runners
from sige.runs.models.zoo import Zoo

META = {"name": "meta", "device": "meta", "dtype": "float32", "threads": None, "allocator": "retain"}
COUNTED = {name: fakes.METRICS[name] for name in ("macs", "state")}


def expanded(**changes):
    methods = {"dense": fakes.DENSE, "fake": {"runner": "runner_fakes", "policy": "fake"}}
    return expand(fakes.configuration(**{"hardware": META, "metric": COUNTED, "method": methods, **changes}), {})


@pytest.fixture(scope="module")
def job():
    return expanded()[0]


@pytest.fixture(scope="module")
def readings(job):
    zoo = Zoo(job["model"], "meta")
    items = measure.measure(job, zoo, Runners(zoo, job["hardware"]))
    bench = next(items)
    return {(reading.method, reading.metric): reading.value for reading in items}, bench


def test_the_model_has_no_data(job):
    zoo = Zoo(job["model"], "meta")
    assert {tensor.device.type for tensor in zoo.module("channels_last", "bfloat16").parameters()} == {"meta"}


def test_dense_macs_are_those_of_the_cpu(readings):
    assert readings[0]["dense", "macs"] == 16 * 16 * 9 * (3 * 4 + 4 * 3) / 1e9


def test_the_size_of_the_model_is_known(readings):
    parameters = sum(parameter.numel() for parameter in fakes.Net().parameters())
    assert readings[0]["dense", "params"] == parameters / 1e6


def test_a_dense_method_runs_no_step(readings):
    assert list(readings[1].probes) == ["fake"]


def test_remembered_bytes_are_told(readings):
    assert readings[0]["fake", "state_bytes.total"] == 1.5


def test_nothing_fails(readings):
    assert readings[1].failures == {}


def test_inputs_have_no_data_and_the_mask_has(readings):
    bench = readings[1]
    assert [part.device.type for part in bench.edited] == ["meta"]
    assert bench.mask.device.type == "cpu" and bool(bench.mask.any())


@pytest.mark.parametrize("metric", ["error", "time_share"])
def test_a_metric_of_values_is_refused_before_anything_runs(metric):
    with pytest.raises(UserError, match=f"metric={metric} needs values, and hardware=meta has shapes alone; choose"):
        expanded(metric={metric: fakes.METRICS[metric]})


def test_weights_are_not_asked_for():
    (job,) = expanded(model={**fakes.MODEL, "weights": "pretrained"})
    assert job["model"]["weights"] == "random"


def test_automatic_hardware_is_never_meta():
    automatic = {**META, "name": "auto", "device": "auto"}
    choices = {name: {**META, "name": name, "device": name} for name in ("cuda", "mps", "cpu")}
    (job,) = expand(fakes.configuration(hardware=automatic), choices)
    assert job["hardware"]["device"] in ("cuda", "mps", "cpu")


def test_the_engine_counts_on_meta_what_it_counts_on_the_cpu():
    """One convolution under a policy, through the session's runner."""
    model = {"name": "toy", "loader": "sige.runs.models.toy_conv", "weights": "random", "seed": 0}
    model["input"] = {"height": 64, "width": 64}
    methods = {"ours": {"runner": "sige.runs.methods.session", "policy": "incremental"}}
    changes = {"model": model, "method": methods, "metric": COUNTED}
    changes["edit"] = {"rectangle_1": {"name": "rectangle-1"}}
    changes["dataset"] = {"synthetic": {"height": 64, "width": 64, "seed": 0}}
    found = []
    for device in ("meta", "cpu"):
        (job,) = expand(fakes.configuration(hardware={**META, "device": device, "threads": 1}, **changes), {})
        zoo = Zoo(model, device)
        items = measure.measure(job, zoo, Runners(zoo, job["hardware"]))
        bench = next(items)
        found.append({reading.metric: reading.value for reading in items})
        assert bench.failures == {}
    assert found[0] == found[1] and 0 < found[0]["macs"] < found[0]["dense_macs"]


def test_weights_are_shared_between_layouts_where_they_agree(job):
    zoo = Zoo(job["model"], "cpu")
    stock, last = zoo.module("contiguous", "float32"), zoo.module("channels_last", "float32")
    assert stock.first.bias is last.first.bias and stock.first.weight is not last.first.weight
    assert last.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert stock is not zoo.module("contiguous", "float32")


@pytest.mark.parametrize(
    "prompt, names", [pytest.param(True, ("text",), id="prompt"), pytest.param(False, (), id="picture")]
)
def test_an_edit_of_the_prompt_changes_and_declares_the_text(job, monkeypatch, prompt, names):
    made = measure.load_edit(job)
    monkeypatch.setattr(measure, "load_edit", lambda job: dataclasses.replace(made, prompt=prompt))
    monkeypatch.setattr(fakes, "with_new_text", lambda model, inputs, seed: (inputs, ("text",)), raising=False)
    zoo = Zoo(job["model"], "meta")
    bench = measure.Bench(job, zoo, Runners(zoo, job["hardware"]))
    bench.prepare()
    assert (bench.changed, bench.runners["fake"].changed) == (names, names)
