"""Several pictures, and several users' edits, in one batch: each as if it were alone."""

import pytest
import torch

from sige.errors import MaskError, PromptError

STEPS = 3
OLD, NEW = ["a dog on a sofa", "two birds"], ["a cat on a sofa", "three birds"]


@pytest.fixture
def both(make_session):
    session = make_session()
    session.generate(OLD, seed=[3, 8], steps=STEPS)
    return session


@pytest.fixture
def masks(where, elsewhere):
    return torch.stack([where, elsewhere])


@pytest.mark.parametrize("place", [0, 1])
def test_batch_of_edits_is_each_edit_alone(make_session, both, masks, distance, place):
    edited = both.edit(NEW, mask=masks)
    session = make_session()
    session.generate(OLD[place], seed=[3, 8][place], steps=STEPS)
    alone = session.edit(NEW[place], mask=masks[place])
    assert distance(edited.image[place : place + 1], alone.image) < 1e-4
    assert distance(session.original.image, alone.image) > 1e-3


@pytest.mark.parametrize("place", [0, 1])
def test_each_picture_is_the_recording_outside_its_own_mask(both, masks, place):
    was = both.original.latents
    edited = both.edit(NEW, mask=masks)
    outside = ~masks[place]
    assert torch.equal(edited.latents[place][:, outside], was[place][:, outside])
    assert not torch.equal(edited.latents[place][:, ~outside], was[place][:, ~outside])


def test_picture_with_an_empty_mask_stays(both, masks):
    masks[1] = False
    edited = both.edit(NEW, mask=masks)
    assert torch.equal(edited.latents[1], both.original.latents[1])


def test_masks_are_found_for_each_picture(both):
    edited = both.edit([NEW[0], OLD[1]], mask_steps=(1, 2))
    assert edited.mask[0].any() and not edited.mask[1].any()
    assert torch.equal(edited.latents[1], both.original.latents[1])


def test_batch_costs_what_its_edits_cost(make_session, both, masks):
    macs = both.edit(NEW, mask=masks).effect.macs
    alone = 0
    for place in (0, 1):
        session = make_session()
        session.generate(OLD[place], steps=STEPS)
        alone += session.edit(NEW[place], mask=masks[place]).effect.macs
    assert macs == alone


def test_one_seed_makes_each_picture_its_own_noise(make_session, distance):
    session = make_session()
    pictures = session.generate([OLD[0], OLD[0]], seed=3, steps=STEPS).image
    assert distance(pictures[1], session.generate(OLD[0], seed=4, steps=STEPS).image[0]) < 1e-4


def test_pictures_of_a_batch_are_painted_on(make_session, where):
    session = make_session()
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = session.generate(OLD, steps=STEPS, image=pictures, strength=0.7)
    painted = pictures.clone()
    painted[1] = torch.where(where.repeat_interleave(4, 0).repeat_interleave(4, 1), 1 - painted[1], painted[1])
    edited = session.edit(image=painted)
    assert not edited.mask[0].any() and torch.equal(edited.latents[0], made.latents[0])
    assert not torch.equal(edited.latents[1], made.latents[1])


def test_attention_is_held_in_a_batch(make_session, masks):
    session = make_session()
    session.generate(OLD, steps=STEPS, attention_control=1)
    edited = session.edit(NEW, mask_steps=(1, 1), attention_control=True, prompt_weights=[{"cat": 2.0}, None])
    session.commit()
    assert edited.image.shape[0] == 2 and session.edit(OLD, mask=masks, attention_control=True).calls == STEPS


def test_without_guidance_a_call_holds_each_picture_once(make_session, where, dense, distance):
    session = make_session()
    session.generate(OLD[0], seed=3, steps=STEPS, guidance_scale=1.0)
    assert session.edit(NEW[0], mask=where).calls == STEPS
    edited = session.edit(NEW[0], mask=torch.ones_like(where))
    reference = dense(session.pipe, NEW[0], seed=3, guidance_scale=1.0, num_inference_steps=STEPS)
    assert distance(edited.image, reference) < 1e-3


def test_negative_prompts(make_session, where, dense, distance):
    session = make_session()
    session.generate(OLD[0], seed=3, steps=STEPS, negative_prompt="a cow")
    edited = session.edit(NEW[0], mask=torch.ones_like(where))
    reference = dense(session.pipe, NEW[0], seed=3, negative_prompt="a cow", num_inference_steps=STEPS)
    assert distance(edited.image, reference) < 1e-3


def test_number_of_masks(both):
    with pytest.raises(MaskError, match="the edit mask has batch 3, the recording 2"):
        both.edit(NEW, mask=torch.ones(3, 16, 16, dtype=torch.bool))


@pytest.mark.parametrize(
    "settings, message",
    [
        pytest.param({"seed": [1, 2, 3]}, "3 seeds for 2 pictures", id="seeds"),
        pytest.param({"seed": 0.5}, "seeds: 0.5 is float", id="kind-of-seed"),
        pytest.param({"negative_prompt": ["a"]}, "1 negative prompts for 2 pictures", id="negatives"),
        pytest.param({"prompt": None}, "StableDiffusionPipeline needs a prompt", id="prompt"),
        pytest.param({"latents": 5}, "latents=5 is nothing that can be chosen", id="ours"),
        pytest.param({"colour": 5}, "colour=5 is nothing that can be chosen", id="unknown"),
        pytest.param({"prompt_weights": [{"dog": 2.0}]}, "for 2 pictures: give", id="weights"),
    ],
)
def test_requests_that_cannot_be(make_session, settings, message):
    with pytest.raises(PromptError, match=message):
        make_session().generate(**{"prompt": OLD, "steps": STEPS, **settings})
