"""A job on a GPU, from the configuration to its readings. The GPU is not there, see tests/pretended.py: its times mean nothing."""

import math

import hydra
import pytest
from omegaconf import OmegaConf
from pretended import gpu

from sige.paths import conf_dir
from sige.runs import app, measure
from sige.runs.jobs import expand

METHODS = ["sige", "incremental", "incremental_state_fp8"]
METRICS = ["macs", "error", "state", "latency"]


@pytest.fixture(scope="module")
def measured():
    """({(method, metric): value} of the tiny model, failures)."""
    overrides = ["model=ddpm_tiny", "hardware=cuda", "edit=brush-5", f"method=[{','.join(METHODS)}]"]
    app.register_edits()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", [*overrides, f"metric=[{','.join(METRICS)}]", "rounds=1", "warmup=1"])
    with gpu():
        (job,) = expand(OmegaConf.to_container(config, resolve=True), app.hardware_choices())
        zoo, kept = measure.load(job["model"], job["hardware"])
        bench, *readings = measure.measure(job, zoo, kept)
    return {(one.method, one.metric): one.value for one in readings}, bench.failures


def test_no_method_fails(measured):
    assert measured[1] == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["macs_ratio", "error_rel_l2", "state_bytes.total", "latency", "speedup"])
def test_every_method_is_measured(measured, method, metric):
    assert math.isfinite(measured[0][method, metric])


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_output_is_near_the_dense_models(measured, method):
    assert measured[0][method, "gate"] == 1
