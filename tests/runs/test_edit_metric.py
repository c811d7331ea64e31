"""How much an edit covers: its own area, and the masks of a policy."""

import pytest
import runner_fakes as fakes

from sige.runs import measure
from sige.runs.jobs import expand
from sige.runs.measure import Runners
from sige.runs.models.zoo import Zoo


@pytest.fixture(scope="module")
def found():
    methods = {"dense": fakes.DENSE, "sige": {"runner": "sige.runs.methods.session", "policy": "sige"}}
    metrics = {"edit": {"collect": "sige.runs.metrics.edit"}}
    (job,) = expand(
        fakes.configuration(method=methods, metric=metrics, edit={"rectangle_25": {"name": "rectangle-25"}}), {}
    )
    zoo = Zoo(job["model"], "cpu")
    items = measure.measure(job, zoo, Runners(zoo, job["hardware"]))
    bench = next(items)
    return {(reading.method, reading.metric): reading for reading in items}, bench


def test_the_raw_area_is_what_differs(found):
    readings, bench = found
    assert readings["dense", "edit_area_raw"].value == pytest.approx(100 * bench.edit.area)


def test_densities_go_down_to_the_coarsest_mask(found):
    assert {metric for method, metric in found[0] if method == "sige"} == {
        "edit_area_raw",
        "mask_density.16",
        "mask_density.8",
    }


def test_a_grown_mask_is_denser_than_the_edit(found):
    readings, bench = found
    assert 100 * bench.edit.area < readings["sige", "mask_density.16"].value <= readings["sige", "mask_density.8"].value


def test_a_dense_method_has_no_masks(found):
    assert {metric for method, metric in found[0] if method == "dense"} == {"edit_area_raw"}
