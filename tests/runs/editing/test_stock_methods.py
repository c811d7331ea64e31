"""Methods that are runs of a stock pipeline: what they run, how often, and on what."""

import pytest
import torch

from sige.runs.editing import registry
from sige.runs.editing.task import Call
from sige.runs.errors import UserError


def test_sdtp_is_the_new_prompt_from_the_same_noise(pipe, make_task, stock):
    task = make_task()
    result = registry.edit("sdtp", pipe, task)
    assert torch.equal(result.image, stock(pipe, task, task.new_prompt))


def test_the_original_is_the_old_prompt(pipe, make_task, stock):
    task = make_task()
    assert torch.equal(registry.edit("sdtp", pipe, task).original, stock(pipe, task, task.prompt))


def test_making_the_original_is_no_part_of_the_edit(pipe, make_task):
    result = registry.edit("sdtp", pipe, make_task())
    assert result.calls_by_part["original"] == result.calls == [Call(2, 16, 16)] * 4
    assert set(result.seconds) == {"original", "edit"} and min(result.seconds.values()) > 0


def test_a_given_original_is_not_made_again(pipe, make_task):
    picture = torch.rand(3, 64, 64)
    result = registry.edit("sdedit", pipe, make_task(image=picture))
    assert torch.equal(result.original, picture) and "original" not in result.calls_by_part


@pytest.mark.parametrize(
    "settings, calls",
    [
        pytest.param({}, 8, id="0.8 unless told"),
        pytest.param({"strength": 0.5}, 5, id="by the task"),
        pytest.param({"options": {"strength": 0.35}}, 3, id="by an option, rounded down"),
        pytest.param({"strength": 1.0}, 10, id="all steps"),
    ],
)
def test_strength_of_sdedit_is_its_share_of_the_steps(pipe, make_task, settings, calls):
    result = registry.edit("sdedit", pipe, make_task(steps=10, **settings))
    assert result.calls == [Call(2, 16, 16)] * calls


def test_sdedit_changes_more_with_more_strength(pipe, make_task):
    near, far = (registry.edit("sdedit", pipe, make_task(steps=10, strength=strength)) for strength in (0.1, 0.9))
    latents_apart = [(one.image - one.original).abs().mean() for one in (near, far)]
    assert latents_apart[0] < latents_apart[1]


def test_sdip_follows_mask_and_picture(pipes, make_task, half, stock):
    before = stock(pipes["text"], make_task(), "a dog on a sofa")
    left = registry.edit("sdip", pipes["inpaint"], make_task(image=before, mask=~half))
    right = registry.edit("sdip", pipes["inpaint"], make_task(image=before, mask=half))
    other = registry.edit("sdip", pipes["inpaint"], make_task(image=1 - before, mask=half))
    assert not torch.allclose(left.image, right.image, atol=0.01)
    assert not torch.allclose(other.image, right.image, atol=0.01)


def test_sdip_runs_all_steps_and_tells_its_mask(pipes, make_task, half):
    result = registry.edit("sdip", pipes, make_task(mask=half))
    assert result.calls == [Call(2, 16, 16)] * 4 and result.mask is half


def test_instructions_run_in_three_branches(pipes, make_task):
    result = registry.edit("instruct_pix2pix", pipes, make_task())
    assert result.calls == [Call(3, 16, 16)] * 4


def test_an_instruction_takes_the_place_of_the_new_prompt(pipes, make_task):
    plain = registry.edit("instruct_pix2pix", pipes, make_task())
    told = registry.edit("instruct_pix2pix", pipes, make_task(options={"instruction": "add snow"}))
    same = registry.edit("instruct_pix2pix", pipes, make_task(options={"instruction": "a cat on a sofa"}))
    assert torch.equal(same.image, plain.image) and not torch.allclose(told.image, plain.image, atol=0.01)


def test_of_many_pipelines_the_text_one_makes_the_original(pipes, make_task, stock):
    task = make_task()
    result = registry.edit("instruct_pix2pix", pipes, task)
    assert torch.equal(result.original, stock(pipes["text"], task, task.prompt))
    assert result.calls_by_part["original"] == [Call(2, 16, 16)] * 4


@pytest.mark.parametrize(
    "method, kind, message",
    [
        pytest.param(
            "sdtp", "instruct", "sdtp runs a StableDiffusionPipeline, not a StableDiffusionInstruct", id="sdtp"
        ),
        pytest.param(
            "sdip", "text", "sdip runs a StableDiffusionInpaintPipeline, not a StableDiffusionPipeline", id="sdip"
        ),
    ],
)
def test_refuses_another_pipeline(pipes, make_task, method, kind, message):
    with pytest.raises(UserError, match=message):
        registry.edit(method, pipes[kind], make_task())


@pytest.mark.parametrize("method", ["sdip", "instruct_pix2pix"])
def test_methods_that_cannot_make_the_original_ask_for_it(pipes, make_task, method):
    with pytest.raises(UserError, match="cannot make the picture that it edits; give task.image"):
        registry.edit(method, pipes[registry.kind(method)], make_task())


@pytest.mark.parametrize(
    "mask, message",
    [
        pytest.param(None, "fills a mask and finds none; give task.mask", id="none"),
        pytest.param(torch.ones(8, 8, dtype=torch.bool), r"shape \(8, 8\); give \(16, 16\)", id="of another size"),
    ],
)
def test_masks_that_cannot_be_filled(pipes, make_task, mask, message):
    with pytest.raises(UserError, match=message):
        registry.edit("sdip", pipes["inpaint"], make_task(mask=mask, image=torch.rand(3, 64, 64)))
