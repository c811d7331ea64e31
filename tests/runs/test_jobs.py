"""From a configuration to jobs, and one clear sentence for what cannot be run."""

import pytest
import runner_fakes as fakes

from sige.kernels import backends
from sige.runs import plan, rows
from sige.runs.errors import UserError
from sige.runs.jobs import expand
from sige.runs.metrics import Reading


def test_each_edit_is_a_job(jobs):
    assert [job["edit"]["name"] for job in jobs("brush-5", "rectangle-30")] == ["brush-5", "rectangle-30"]


def test_methods_are_measured_together_with_the_dense_ladder(jobs):
    assert list(jobs()[0]["methods"]) == ["dense", "dense_channels_last", "fake"]


def test_without_time_there_is_no_dense_ladder(jobs):
    assert list(jobs(metric={"macs": fakes.METRICS["macs"]})[0]["methods"]) == ["fake"]


def test_the_configuration_is_text_without_the_machine(jobs):
    assert "machine" not in jobs()[0]["config"]
    assert jobs()[0]["hardware"]["machine"].endswith("1 threads")


@pytest.mark.parametrize(
    "there, expected",
    [
        pytest.param(
            False,
            [("church-432", ""), ("brush-1.2", "stands in for church-432, which is not on this machine")],
            id="missing",
        ),
        pytest.param(True, [("church-432", "")], id="there"),
    ],
)
def test_a_missing_sample_is_kept_beside_what_stands_in_for_it(jobs, tmp_path, there, expected):
    if there:
        for kind in ("original", "edited"):
            (tmp_path / f"church-432-{kind}.png").write_bytes(b"")
    dataset = {"church": {"folder": str(tmp_path)}, "synthetic": {"height": 16, "width": 16}}
    found = jobs(edit={"a": {"name": "church-432", "or_else": "brush-1.2"}}, dataset=dataset)
    assert [(job["edit"]["name"], job["note"]) for job in found] == expected


@pytest.mark.parametrize(
    "changes, sentence",
    [
        pytest.param({"edit": {}}, "there is nothing to run: name an edit, e.g. edit=brush-1.2.", id="no-edit"),
        pytest.param(
            {"edit": {"a": {"name": "mosaic-5"}}},
            "unknown edit 'mosaic-5'; there are cityscapes-pair, labels-",
            id="edit",
        ),
        pytest.param(
            {"method": {}, "baseline": {}}, "there is no method to run: name one, e.g. method=sige.", id="no-method"
        ),
        pytest.param({"metric": {}}, "there is nothing to measure: name a metric, e.g. metric=macs.", id="no-metric"),
        pytest.param(
            {"metric": {"latency": fakes.METRICS["latency"]}},
            "metric=latency needs metric=error beside it",
            id="no-error",
        ),
        pytest.param({"protocol": "fast"}, "unknown protocol 'fast'; choose interleaved or paper.", id="protocol"),
        pytest.param(
            {"method": {"x": {"runner": "no.such.file"}}},
            "method x: runner names the module 'no.such.file', which cannot",
            id="runner",
        ),
        pytest.param(
            {"method": {"x": {"runner": "sige.runs.methods.session", "policy": "siege"}}},
            "method x: unknown policy 'siege': choose one of sige, sige_public,",
            id="policy",
        ),
        pytest.param(
            {"method": {"x": {"runner": "sige.runs.methods.session", "policy": "sige", "dials": {"blok": 3}}}},
            "method x: unknown policy dial 'blok'; there are name, geometry, block,",
            id="dial",
        ),
        pytest.param(
            {"method": {"x": {"runner": "sige.runs.methods.session", "policy": "sige", "dials": {"block": 0}}}},
            "method x: policy block=0 must be a whole number of at least 1",
            id="block",
        ),
        pytest.param(
            {"method": {"x": {"runner": "sige.runs.methods.dense", "layout": "NCHW"}}},
            "method x: unknown layout 'NCHW' of a method; choose contiguous or channels_last.",
            id="layout",
        ),
        pytest.param(
            {"hardware": {"name": "x", "device": "tpu", "dtype": "float32"}},
            "unknown hardware.device 'tpu'; choose auto, cuda, mps, cpu, meta.",
            id="device",
        ),
        pytest.param(
            {"hardware": {"name": "x", "device": "cpu", "dtype": "int7"}},
            "unknown hardware.dtype 'int7'; choose float32, bfloat16 or float16.",
            id="dtype",
        ),
        pytest.param(
            {"hardware": {"name": "x", "device": "cpu", "dtype": "float32", "allocator": "jemalloc"}},
            "unknown hardware.allocator 'jemalloc'; choose retain or stock.",
            id="allocator",
        ),
    ],
)
def test_what_cannot_be_run_is_told_in_a_sentence(changes, sentence):
    with pytest.raises(UserError) as told:
        expand(fakes.configuration(**changes), {})
    assert str(told.value).startswith(sentence)


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        UserError, match="hardware.device=cuda is not available on this .* machine; choose auto or cpu."
    ):
        expand(fakes.configuration(hardware={"name": "cuda", "device": "cuda", "dtype": "float32"}), {})


@pytest.mark.parametrize(
    "there, expected",
    [
        pytest.param({"cuda"}, "cuda", id="nvidia"),
        pytest.param({"mps"}, "mps", id="mac"),
        pytest.param(set(), "cpu", id="neither"),
    ],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, there, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in there)
    monkeypatch.setattr("sige.runs.environment.machine", lambda device, threads: device)
    monkeypatch.setattr(backends, "_own", backends.usual)
    choices = {
        name: {"name": name, "device": name, "dtype": "float32", "threads": None, "allocator": "retain"}
        for name in ("cuda", "mps", "cpu")
    }
    auto = {"name": "auto", "device": "auto", "dtype": None, "threads": None, "allocator": None}
    (job,) = expand(fakes.configuration(hardware=auto), choices)
    assert (job["hardware"]["name"], job["hardware"]["device"]) == (expected, expected)


CPU = {"name": "cpu", "device": "cpu", "dtype": "float32", "threads": 1, "allocator": "retain", "backend": None}


@pytest.fixture
def on_backend(monkeypatch):
    """``on_backend(configured, variable)``: the job with these in the configuration and in SIGE_BACKEND."""

    def make(configured, variable):
        if variable:
            monkeypatch.setenv("SIGE_BACKEND", variable)
        else:
            monkeypatch.delenv("SIGE_BACKEND", raising=False)
        return expand(fakes.configuration(hardware={**CPU, "backend": configured}), {})[0]

    return make


@pytest.mark.parametrize(
    "configured, variable, backend, name",
    [
        pytest.param(None, None, "cpu", "cpu", id="own"),
        pytest.param("cpu", None, "cpu", "cpu", id="own-by-name"),
        pytest.param("reference", None, "reference", "cpu+reference", id="configured"),
        pytest.param(None, "reference", "reference", "cpu+reference", id="environment"),
        pytest.param("cpu", "reference", "cpu", "cpu", id="configuration-before-environment"),
    ],
)
def test_the_kernel_backend_is_recorded(on_backend, configured, variable, backend, name):
    hardware = on_backend(configured, variable)["hardware"]
    assert (hardware["backend"], hardware["name"]) == (backend, name)


def test_a_forced_backend_is_another_run(on_backend, store):
    own, forced = (plan.make([on_backend(None, variable)], store)[0] for variable in (None, "reference"))
    assert own.identity["run_id"] != forced.identity["run_id"]


def test_what_is_there_of_a_forced_backend_does_not_stand_for_the_own_one(on_backend, store):
    forced = plan.make([on_backend("reference", None)], store)[0].job
    reading = Reading("fake", "macs", 1.0, "G")
    store.merge(forced["config"], [rows.of(forced, reading, rows.now(), 0.3, "synthetic", "float32")])
    planned = plan.make([on_backend("reference", None), on_backend(None, None)], store)
    assert [one.state for one in planned] == ["cached", "run"]


@pytest.mark.parametrize(
    "configured, variable, sentence",
    [
        pytest.param(
            "cudnn",
            None,
            "unknown kernel backend 'cudnn': choose one of reference, composed, cpu, triton, mps.",
            id="unknown-configured",
        ),
        pytest.param(
            None,
            "cudnn",
            "unknown kernel backend 'cudnn': choose one of reference, composed, cpu, triton, mps.",
            id="unknown-in-environment",
        ),
    ],
)
def test_an_unknown_backend_is_told_before_anything_runs(on_backend, configured, variable, sentence):
    with pytest.raises(UserError) as told:
        on_backend(configured, variable)
    assert str(told.value) == sentence


@pytest.mark.parametrize(
    "configured, variable, remedy",
    [
        pytest.param("triton", None, "leave hardware.backend at null", id="configured"),
        pytest.param(None, "triton", "unset SIGE_BACKEND", id="environment"),
    ],
)
def test_a_backend_that_cannot_serve_the_device_is_told(on_backend, monkeypatch, configured, variable, remedy):
    monkeypatch.setattr(backends, "missing", lambda name: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    sentence = (
        "kernel backend 'triton' serves CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before Python "
        f"starts, or {remedy}."
    )
    with pytest.raises(UserError) as told:
        on_backend(configured, variable)
    assert str(told.value) == sentence


def test_on_meta_tensors_there_is_no_backend(monkeypatch):
    monkeypatch.setenv("SIGE_BACKEND", "reference")
    macs = {"macs": fakes.METRICS["macs"]}
    (job,) = expand(fakes.configuration(hardware={**CPU, "name": "meta", "device": "meta"}, metric=macs), {})
    assert (job["hardware"]["backend"], job["hardware"]["name"]) == (None, "meta")


def test_auto_keeps_what_was_set_by_hand(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    choices = {"cpu": {"name": "cpu", "device": "cpu", "dtype": "float32", "threads": None, "allocator": "retain"}}
    auto = {"name": "auto", "device": "auto", "dtype": "bfloat16", "threads": 1, "allocator": None}
    (job,) = expand(fakes.configuration(hardware=auto), choices)
    assert (job["hardware"]["dtype"], job["hardware"]["threads"]) == ("bfloat16", 1)
