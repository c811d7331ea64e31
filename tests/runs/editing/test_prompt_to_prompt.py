"""Prompt-to-Prompt: two prompts side by side, maps of words that stay taken over."""

import diffusers
import pytest
import torch

from sige.errors import PromptError
from sige.runs.editing import registry
from sige.runs.editing.task import Call
from sige.runs.errors import UserError

OFF = {"cross_steps": 0, "self_steps": 0}
ALL = {"cross_steps": 1, "self_steps": 1}


def edited(pipe, task):
    return registry.edit("prompt_to_prompt", pipe, task)


def apart(result):
    return float((result.image - result.original).abs().mean())


def test_the_same_prompt_gives_the_base_picture(pipe, make_task, stock):
    task = make_task(new_prompt="a dog on a sofa")
    result = edited(pipe, task)
    assert torch.allclose(result.image, stock(pipe, task, task.prompt), atol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_so_it_does_with_the_pipeline_s_own_scheduler(pipe, make_task, stock, monkeypatch, name):
    monkeypatch.setattr(pipe, "scheduler", getattr(diffusers, name).from_config(pipe.scheduler.config))
    task = make_task(new_prompt="a dog on a sofa")
    assert torch.allclose(edited(pipe, task).image, stock(pipe, task, task.prompt), atol=1e-3)


def test_the_original_is_the_base_picture(pipe, make_task, stock):
    task = make_task(options=ALL)
    assert torch.allclose(edited(pipe, task).original, stock(pipe, task, task.prompt), atol=1e-4)


def test_without_control_it_is_the_new_prompt_from_the_same_noise(pipe, make_task, stock):
    task = make_task(options=OFF)
    assert torch.allclose(edited(pipe, task).image, stock(pipe, task, task.new_prompt), atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"cross_steps": 1, "self_steps": 0}, id="maps to the text"),
        pytest.param({"cross_steps": 0, "self_steps": 1}, id="maps of the picture to itself"),
        pytest.param({"cross_steps": 0, "self_steps": 1, "self_reduction": 1}, id="and on finer levels"),
    ],
)
def test_control_keeps_the_picture_nearer(pipe, make_task, more):
    free, held = edited(pipe, make_task(options=OFF)), edited(pipe, make_task(options=more))
    assert apart(held) < apart(free)


def test_longer_control_holds_more(pipe, make_task):
    few, many = (edited(pipe, make_task(options={"cross_steps": share, "self_steps": 0})) for share in (0.25, 1))
    assert apart(many) < apart(few)


def test_weights_change_the_picture(pipe, make_task):
    plain = edited(pipe, make_task(new_prompt="a dog on a sofa"))
    weighted = edited(pipe, make_task(new_prompt="a dog on a sofa", options={"weights": {"dog": 4.0}}))
    assert apart(plain) < 1e-4 < apart(weighted)


def test_one_call_of_four_rows_a_step(pipe, make_task):
    assert edited(pipe, make_task()).calls == [Call(4, 16, 16)] * 4


def test_without_guidance_two_rows_are_enough(pipe, make_task):
    assert edited(pipe, make_task(guidance_scale=1.0)).calls == [Call(2, 16, 16)] * 4


def test_the_pipeline_is_left_as_it_was(pipe, make_task):
    before = dict(pipe.unet.attn_processors)
    edited(pipe, make_task())
    after = pipe.unet.attn_processors
    assert all(after[name] is before[name] for name in before) and not pipe.unet._forward_pre_hooks


def test_so_it_is_after_a_failure(pipe, make_task, monkeypatch):
    before = dict(pipe.unet.attn_processors)
    with monkeypatch.context() as patched:
        patched.setattr(pipe.scheduler, "step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            edited(pipe, make_task())
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before) and not pipe.unet._forward_pre_hooks


def test_a_share_that_is_none_is_named(pipe, make_task):
    with pytest.raises(UserError, match="prompt_to_prompt has cross_steps=2; give a share of the steps from 0 to 1"):
        edited(pipe, make_task(options={"cross_steps": 2}))


def test_a_weight_of_a_word_that_is_not_there_is_named(pipe, make_task):
    with pytest.raises(PromptError, match="'bird' has a weight but is not among the words"):
        edited(pipe, make_task(options={"weights": {"bird": 2.0}}))
