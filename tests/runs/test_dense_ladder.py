"""The ladder of dense baselines, whose top needs CUDA graphs, as ours does, and says so where there are none."""

import types

import pytest
import runner_fakes as fakes
import torch

from sige.runs.errors import JobFailure
from sige.runs.jobs import expand
from sige.runs.methods import dense, session
from sige.runs.metrics import latency
from sige.runs.models.zoo import Zoo

GRAPHS = {"runner": "sige.runs.methods.dense", "layout": "channels_last", "compile": True, "mode": "reduce-overhead"}


SPARSE = {"runner": "sige.runs.methods.session", "policy": "incremental", "cuda_graphs": True}


@pytest.mark.parametrize(
    "runner, options", [pytest.param(dense, GRAPHS, id="dense"), pytest.param(session, SPARSE, id="sparse")]
)
def test_cuda_graphs_are_not_run_without_an_nvidia_gpu(runner, options):
    with pytest.raises(JobFailure) as told:
        runner.build("graphs", options, Zoo(fakes.MODEL, "cpu"), {"name": "cpu", "device": "cpu", "dtype": "float32"})
    assert (told.value.status, str(told.value)) == (
        "skipped",
        "CUDA graphs need an NVIDIA GPU: not run on hardware cpu",
    )


@pytest.mark.parametrize("mode", [None, "reduce-overhead"], ids=["plain", "graphs"])
def test_the_mode_of_compiling_is_the_configurations(monkeypatch, mode):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module, mode=None: asked.append(mode) or module)
    hardware = {"name": "cuda", "device": "cuda", "dtype": "float32"}
    dense.build("it", {**GRAPHS, "mode": mode}, Zoo(fakes.MODEL, "cpu"), hardware)
    assert asked == [mode]


def test_an_output_in_a_graphs_memory_is_copied_out_of_it(monkeypatch):
    memory = torch.zeros(1, 3, 4, 4)

    def graph(module, mode=None):
        return lambda x: memory.copy_(x)

    monkeypatch.setattr(torch, "compile", graph)
    runner = dense.build("it", GRAPHS, Zoo(fakes.MODEL, "cpu"), {"name": "cuda", "device": "cuda", "dtype": "float32"})
    monkeypatch.setattr(runner.zoo.loader, "forward", lambda module, *inputs: module(*inputs))
    first, _ = (runner.step((torch.full((1, 3, 4, 4), number),), None).output for number in (1.0, 2.0))
    assert (runner.settled_after, first.unique().tolist()) == (3, [1.0])


@pytest.mark.parametrize("baseline", [{}, None], ids=["empty", "none"])
def test_an_experiment_may_time_without_the_ladder(baseline):
    (job,) = expand(fakes.configuration(baseline=baseline), {})
    assert list(job["methods"]) == ["fake"]


@pytest.mark.parametrize("settled_after, before", [(0, 1), (4, 4)])
def test_steps_before_a_method_has_settled_are_not_timed(settled_after, before):
    runner = types.SimpleNamespace(settled_after=settled_after, dense=False, dtype="float32")
    steps, bench = [], types.SimpleNamespace(runners={"it": runner}, samples={}, gates={}, tick=lambda: None)
    bench.step = lambda method: steps.append(method) or types.SimpleNamespace(ms=len(steps))
    list(latency.collect(bench, 3, 1, False, "paper", 2, 0.1))
    assert bench.samples["latency_paper_ms"]["it"] == [before + 1, before + 2]
