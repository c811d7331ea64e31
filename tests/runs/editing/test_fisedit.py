"""FISEdit through a session on the pipeline."""

import pytest
import torch

from sige.runs.editing import registry
from sige.runs.editing.task import Call
from sige.runs.errors import UserError

TWO = Call(2, 16, 16)
FINE = {"block": 2, "dilation": 1, "min_resolution": 4}  # of maps as small as these
SPARSE = {"policy": "incremental", "dials": FINE}


def edited(pipe, task):
    return registry.edit("fisedit", pipe, task)


def test_the_original_is_the_old_prompt(pipe, make_task, stock):
    task = make_task()
    assert torch.allclose(edited(pipe, task).original, stock(pipe, task, task.prompt), atol=1e-4)


def test_the_first_steps_find_the_mask(pipe, make_task):
    result = edited(pipe, make_task(steps=10))
    assert {part: len(calls) for part, calls in result.calls_by_part.items()} == {
        "original": 10,
        "dense": 2,
        "sparse": 8,
        "last": 0,
    }
    assert 0 < result.mask.float().mean() < 1 and result.details.mask_source == "prompt"


def test_the_edit_stays_inside_its_mask(pipe, make_task, half):
    result = edited(pipe, make_task(mask=half, options=SPARSE))
    far = edited(pipe, make_task(mask=half, new_prompt="a castle under a cloudy sky", options=SPARSE))
    apart = (result.latents - far.latents).abs().sum((0, 1))
    assert not apart[~half].any() and (apart[half] > 0).all()
    assert torch.equal(result.mask, half)


@pytest.mark.parametrize(
    "options, parts",
    [
        pytest.param({"dense_first": 0}, [0, 4, 0], id="sparse from the first step"),
        pytest.param({"dense_first": 1, "dense_last": 2}, [1, 1, 2], id="dense at both ends"),
    ],
)
def test_dense_steps(pipe, make_task, half, options, parts):
    result = edited(pipe, make_task(mask=half, options={**SPARSE, **options}))
    assert [len(result.calls_by_part[part]) for part in ("dense", "sparse", "last")] == parts
    assert result.calls == [TWO] * 4


def test_the_account_of_the_session_is_there(pipe, make_task, spot):
    details = edited(pipe, make_task(mask=spot, options=SPARSE)).details
    assert [kind for _, kind, *_ in details.steps] == ["dense"] + [
        "sparse"
    ] * 3 and 0 < details.macs < details.dense_macs


def test_dials_change_the_policy(pipe, make_task, spot):
    plain = edited(pipe, make_task(mask=spot, options=SPARSE)).details.macs
    dense = edited(pipe, make_task(mask=spot, options={**SPARSE, "dials": {"dense_modules": ["*"]}})).details.macs
    assert plain < 0.9 * dense


def test_an_unknown_dial_is_named(pipe, make_task):
    with pytest.raises(UserError, match="unknown policy dial 'speed'"):
        edited(pipe, make_task(options={"dials": {"speed": 2}}))


def test_the_pipeline_is_left_as_it_was(pipe, make_task, half):
    edited(pipe, make_task(mask=half))
    assert "forward" not in pipe.unet.__dict__ and not pipe.unet._forward_pre_hooks
