"""Jobs of whole edits: the task that a job means, what its metrics read off it, what a failing method does to the others."""

import pytest
import torch

from sige.runs import editing_bench
from sige.runs.errors import JobFailure, UserError
from sige.runs.methods import whole_edits
from sige.runs.metrics import mask_search
from sige.runs.models import pipelines

DIALS = {"block": 2, "dilation": 1, "min_resolution": 8}
MODEL = {
    "name": "small",
    "loader": "sige.runs.models.pipelines",
    "bench": "sige.runs.editing_bench",
    "weights": "random",
    "seed": 0,
    "input": {"channels": 3, "height": 64, "width": 64},
    "reduction": 4,
    "pair": "dog-cat",
    "steps": 2,
    "guidance_scale": 7.5,
    "dials": {"incremental": DIALS},
}
ENGINE = {"runner": "sige.runs.editing.runner", "editor": "fisedit", "options": {"policy": "incremental", "dials": {}}}
PLAIN = {"runner": "sige.runs.editing.runner", "editor": "sdtp", "options": {}}
SYNTHETIC = {"height": 64, "width": 64, "seed": 0}


def job(edit, methods, metrics, **changes):
    dataset = SYNTHETIC if edit.startswith("rectangle") else {}
    made = {"model": {**MODEL, **changes}, "edit": {"name": edit}, "dataset": dataset, "seed": 3}
    return made | {"methods": methods, "metrics": metrics, "hardware": {"device": "cpu", "dtype": "float32"}}


@pytest.fixture(scope="module")
def pipes():
    return pipelines.Pipelines(MODEL, "cpu")


def readings(pipes, *args, **changes):
    """(bench, {(method, metric): reading}) of a job."""
    bench, *rest = editing_bench.measure(job(*args, **changes), pipes)
    return bench, {(one.method, one.metric): one for one in rest}


def test_a_mask_becomes_one_of_latents(pipes):
    bench = editing_bench.EditBench(job("rectangle-15", {}, {}), pipes)
    assert tuple(bench.task.mask.shape) == (16, 16) and 0.1 < bench.task.mask.float().mean() < 0.3


def test_a_mask_edit_takes_the_models_prompts(pipes):
    bench = editing_bench.EditBench(job("rectangle-15", {}, {}), pipes)
    assert (bench.task.prompt, bench.task.new_prompt) == ("a dog on a sofa", "a cat on a sofa")


def test_a_prompt_edit_brings_its_own_and_no_mask(pipes):
    bench = editing_bench.EditBench(job("prompt-hat", {}, {}), pipes)
    assert (bench.task.new_prompt, bench.task.mask) == ("a dog with a hat on a sofa", None)


def test_a_mask_of_a_size_that_does_not_fit_is_refused(pipes):
    with pytest.raises(JobFailure, match="rectangle-15 is 64x64; its sides must be multiples of 20x20"):
        editing_bench.EditBench(job("rectangle-15", {}, {}, input={"channels": 3, "height": 80, "width": 80}), pipes)


def test_the_models_dials_lie_under_the_methods_own(pipes):
    bench = editing_bench.EditBench(job("rectangle-15", {"ours": ENGINE}, {}), pipes)
    assert bench.options("ours")["options"]["dials"] == DIALS


def test_whole_edits_are_timed_beside_the_plain_pipeline(pipes):
    times = {"edit_times": {"collect": "sige.runs.metrics.edit_times", "rounds": 1, "warmup": 0}}
    bench, found = readings(pipes, "rectangle-15", {"sdtp": PLAIN, "ours": ENGINE}, times)
    assert not bench.failures and found["ours", "edit_speedup"].baseline == "sdtp"
    assert found["ours", "edit_seconds"].value > 0 and found["ours", "edit_seconds"].scope == "edit"
    assert found["sdtp", "edit_calls"].value == 2


def test_a_method_that_fails_leaves_the_others_alone(pipes):
    times = {"edit_times": {"collect": "sige.runs.metrics.edit_times", "rounds": 1, "warmup": 0}}
    broken = {**ENGINE, "options": {"policy": "incremental", "dials": {"speed": 9}}}
    bench, found = readings(pipes, "rectangle-15", {"sdtp": PLAIN, "broken": broken}, times)
    assert "unknown policy dial 'speed'" in bench.failures["broken"][1]
    assert ("sdtp", "edit_seconds") in found


def test_the_search_keeps_its_maps_as_text(pipes):
    metric = {"mask_search": {"collect": "sige.runs.metrics.mask_search", "mask_steps": [1, 2], "tiles": [1, 2, 9]}}
    methods = {"with": {"runner": "sige.runs.methods.whole_edits", "controlled": True}}
    _, found = readings(pipes, "prompt-hat", methods, metric)
    assert found["with", "latent_distance.1"].value > 0 and found["with", "latent_distance.2"].value > 0
    assert found["with", "latent_difference.1"].reason.startswith("map 16x16: ")
    assert ("with", "latent_difference.9") not in found  # there is no such step


@pytest.mark.parametrize(
    "values, text",
    [
        pytest.param([[0.0, 1.0]], "map 1x2: 0f", id="as-it-is"),
        pytest.param([[0.0] * 24 + [1.0] * 24], "map 1x24: " + "0" * 12 + "f" * 12, id="reduced"),
    ],
)
def test_a_map_as_text(values, text):
    assert mask_search.as_text(torch.tensor(values).numpy()) == text


SEQUENCE = {"sequence": {"collect": "sige.runs.metrics.sequence", "area": 0.04, "edits": 2}}


def row_method(**changes):
    return {"runner": "sige.runs.methods.whole_edits", "policy": "incremental", "dials": {}, "commit": True} | changes


def test_edits_in_a_row_drift_from_the_dense_run(pipes):
    _, found = readings(pipes, "prompt-sequence", {"ours": row_method()}, SEQUENCE)
    assert 0 < found["ours", "drift.1"].value < found["ours", "drift_in_mask.1"].value < 1
    assert found["ours", "sequence_macs_ratio.2"].value > 1


def test_the_dense_policy_does_not_drift(pipes):
    _, found = readings(pipes, "prompt-sequence", {"dense": row_method(policy="dense")}, SEQUENCE)
    assert [found["dense", f"drift.{k}"].value for k in (1, 2)] == [0, 0]


def test_edits_from_the_first_picture_grow_and_tell_no_drift(pipes):
    _, found = readings(pipes, "prompt-sequence", {"first": row_method(commit=False)}, SEQUENCE)
    areas = [found["first", f"sequence_area.{k}"].value for k in (1, 2)]
    assert areas[1] > areas[0] and ("first", "drift.1") not in found


def test_pretrained_weights_are_not_offered():
    with pytest.raises(JobFailure, match="small has random weights alone, not 'pretrained'"):
        pipelines.weights_digest({**MODEL, "weights": "pretrained"})


def test_a_whole_edit_has_no_place_on_one_network():
    with pytest.raises(UserError, match="ddpm_tiny is a network on its own; choose model=small_text_to_image"):
        whole_edits.check({}, {"name": "ddpm_tiny"})
