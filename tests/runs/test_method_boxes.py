"""A method, or the environment, may ask for convolutions by boxes of the map: where they serve, and what the rows then say."""

import pytest
import runner_fakes as fakes
from pretended import gpu

from sige.kernels.triton import boxes, launch
from sige.runs import jobs
from sige.runs.errors import JobFailure
from sige.runs.methods import kernels, operator, session
from sige.runs.models.zoo import Zoo

HARDWARE = {"name": "cpu", "device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    "build, options",
    [
        pytest.param(session.build, {"policy": "incremental", "boxes": True}, id="session"),
        pytest.param(operator.build, {"way": "kernel", "boxes": True}, id="operator"),
    ],
)
def test_boxes_are_skipped_where_no_gpu_copies_them(build, options):
    with pytest.raises(JobFailure, match="^boxes need Triton on an NVIDIA GPU .*: not run on hardware cpu$") as told:
        build("it", options, Zoo(fakes.MODEL, "cpu"), HARDWARE)
    assert told.value.status == "skipped"


@pytest.mark.parametrize(
    "backend, copies, there", [("triton", True, True), ("triton", False, False), (None, True, False)]
)
def test_boxes_need_triton_and_a_gpu_that_copies_them(monkeypatch, backend, copies, there):
    monkeypatch.setattr(launch, "copies_boxes", lambda device: copies)
    with gpu(*([backend] if backend else [])):
        need = lambda: kernels.need({"boxes": True}, {"name": "gpu", "device": "cuda"})  # noqa: E731
        if there:
            assert need() is None
        else:
            with pytest.raises(JobFailure, match="not run on hardware gpu$"):
                need()


def test_boxes_serve_inside_the_block_alone(monkeypatch):
    monkeypatch.delenv("SIGE_TRITON_BOXES", raising=False)
    with kernels.chosen({"boxes": True}):
        inside = boxes.wanted()
    assert (inside, boxes.wanted()) == (True, False)


@pytest.mark.parametrize(
    "backend, asked, name",
    [
        pytest.param("triton", "1", "gpu+boxes", id="asked for"),
        pytest.param("triton", "0", "gpu", id="not asked for"),
        pytest.param("reference", "1", "gpu+reference", id="of another backend"),
    ],
)
def test_convolutions_by_boxes_are_another_run(monkeypatch, backend, asked, name):
    monkeypatch.setenv("SIGE_TRITON_BOXES", asked)
    hardware = {"name": "gpu", "device": "cuda", "dtype": "bfloat16", "backend": backend}
    with gpu("triton"):
        assert jobs.resolve_hardware(hardware, {})["name"] == name
