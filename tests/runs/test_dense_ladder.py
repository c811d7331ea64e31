"""The ladder of dense baselines: its top needs CUDA graphs, and says so where there are none."""

import pytest
import runner_fakes as fakes
import torch

from sige.runs.errors import JobFailure
from sige.runs.jobs import expand
from sige.runs.methods import dense
from sige.runs.models.zoo import Zoo

GRAPHS = {"runner": "sige.runs.methods.dense", "layout": "channels_last", "compile": True, "mode": "reduce-overhead"}


def test_cuda_graphs_are_not_run_without_an_nvidia_gpu():
    with pytest.raises(JobFailure) as told:
        dense.build(
            "dense_graphs", GRAPHS, Zoo(fakes.MODEL, "cpu"), {"name": "cpu", "device": "cpu", "dtype": "float32"}
        )
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


@pytest.mark.parametrize("baseline", [{}, None], ids=["empty", "none"])
def test_an_experiment_may_time_without_the_ladder(baseline):
    (job,) = expand(fakes.configuration(baseline=baseline), {})
    assert list(job["methods"]) == ["fake"]
