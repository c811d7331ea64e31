"""Edits of pictures: image-to-image and SDEdit, in-painting, models without text."""

import pytest
import torch

from sige.errors import ChangedInputError, PromptError

STEPS = 5


@pytest.fixture
def pictures():
    """A picture (1, 3, 64, 64) in [0, 1], the same with a painted rectangle, and where that lies, (64, 64) and (16, 16)."""
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:36, 24:40] = True
    return picture, torch.where(mask, picture + 0.4, picture), mask, mask[::4, ::4]


def noised(dense, session, picture, prompt, strength, seed=0):
    from diffusers import AutoPipelineForImage2Image

    pipe = AutoPipelineForImage2Image.from_pipe(session.pipe)
    pipe.set_progress_bar_config(disable=True)
    return dense(pipe, prompt, seed=seed, image=picture, strength=strength, num_inference_steps=STEPS)


def test_image_to_image_recording_is_the_pipelines_own(make_session, dense, distance, pictures):
    session = make_session()
    made = session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    assert made.calls == 3 and set(made.seconds) == {"unet", "encode", "decode", "total"}
    assert distance(made.image, noised(dense, session, pictures[0], "a dog", 0.6)) < 1e-4


def test_painted_picture_is_edited_where_it_differs(make_session, pictures):
    session = make_session()
    made = session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    edited = session.edit(image=pictures[1])
    assert edited.mask_source == "difference" and torch.equal(edited.mask[0], pictures[3])
    assert torch.equal(edited.latents[:, :, ~pictures[3]], made.latents[:, :, ~pictures[3]])
    assert not torch.equal(edited.image, made.image) and edited.macs < 0.5 * edited.dense_macs


@pytest.mark.parametrize("prompt", [pytest.param(None, id="same-prompt"), pytest.param("a cat", id="new-prompt")])
def test_whole_picture_changed_is_the_dense_pipeline(make_session, dense, distance, pictures, prompt):
    session = make_session()
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    other = 1 - pictures[0]
    edited = session.edit(prompt, image=other)
    assert edited.mask.all() and edited.calls == 3
    assert distance(edited.image, noised(dense, session, other, prompt or "a dog", 0.6)) < 1e-3


def test_generated_picture_is_painted_on(make_session, pictures):
    session = make_session()
    made = session.generate("a dog", steps=STEPS)
    painted = torch.where(pictures[2], 1 - made.image, made.image)
    edited = session.edit(image=painted, strength=0.6)
    assert [step[0] for step in edited.steps] == [2, 3, 4] and torch.equal(edited.mask[0], pictures[3])
    assert torch.equal(edited.latents[:, :, ~pictures[3]], made.latents[:, :, ~pictures[3]])
    session.commit()
    assert session.request.image is None
    assert session.edit("a cat", mask=pictures[3].roll(2, 0)).calls == STEPS


def test_whole_generated_picture_painted_over_is_the_dense_pipeline(make_session, dense, distance):
    session = make_session()
    painted = 1 - session.generate("a dog", steps=STEPS).image
    edited = session.edit(image=painted, strength=0.6, mask=torch.ones(16, 16, dtype=torch.bool))
    assert distance(edited.image, noised(dense, session, painted, "a dog", 0.6)) < 1e-3


def test_later_strength_starts_later(make_session, pictures):
    session = make_session()
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.8)
    assert [step[0] for step in session.edit(image=pictures[1], strength=0.4).steps] == [2, 3]


def test_strength_beyond_the_recording(make_session, pictures):
    session = make_session()
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.4)
    with pytest.raises(ChangedInputError, match="strength=0.8 makes 4 steps, the recording has 2"):
        session.edit(image=pictures[1], strength=0.8)


def test_pictures_edited_in_a_row(make_session, pictures):
    session = make_session()
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    first = session.edit(image=pictures[1])
    session.commit()
    with pytest.warns(UserWarning, match="the edit mask is empty"):
        assert torch.equal(session.edit(image=pictures[1]).image, first.image)
    elsewhere = torch.where(pictures[2].roll(20, 1), pictures[1] + 0.1, pictures[1])
    second = session.edit(image=elsewhere)
    outside = ~pictures[3].roll(5, 1)
    assert torch.equal(second.mask[0], ~outside)
    assert torch.equal(second.latents[:, :, outside], first.latents[:, :, outside])


def test_encoder_is_sparse_after_undo_too(make_session, pictures):
    session = make_session()
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    first = session.edit(image=pictures[1]).image
    session.undo()
    assert torch.equal(session.edit(image=pictures[1]).image, first)


@pytest.mark.parametrize(
    "image, message",
    [
        pytest.param(torch.zeros(3, 32, 32), r"the image is \(32, 32\), the recorded picture \(64, 64\)", id="size"),
        pytest.param(torch.full((3, 64, 64), 2.0), "values from 2 to 2: give values from 0 to 1", id="range"),
        pytest.param(torch.zeros(2, 3, 64, 64), r"the image has shape \(2, 3, 64, 64\)", id="batch"),
        pytest.param("a picture", "the image is str: give a tensor", id="type"),
    ],
)
def test_picture_that_does_not_fit(make_session, image, message):
    session = make_session()
    session.generate("a dog", steps=2)
    with pytest.raises(ChangedInputError, match=message):
        session.edit(image=image)


def test_pil_pictures_are_read(make_session, pictures):
    from diffusers.image_processor import VaeImageProcessor

    session = make_session()
    painted = VaeImageProcessor.numpy_to_pil(pictures[1].permute(0, 2, 3, 1).numpy())[0]
    session.generate("a dog", steps=STEPS, image=pictures[0], strength=0.6)
    assert torch.equal(session.edit(image=painted).mask[0], pictures[3])


def test_in_painting_is_the_pipelines_own(make_session, dense, distance, pictures):
    session = make_session("inpaint")
    made = session.generate("a dog", steps=STEPS, image=pictures[0], mask_image=pictures[2])
    mask = pictures[2][None, None].float()
    reference = dense(session.pipe, "a dog", image=pictures[0], mask_image=mask, num_inference_steps=STEPS)
    assert distance(made.image, reference) < 1e-4


def test_in_painting_edit_of_everything_is_the_dense_pipeline(make_session, dense, distance, pictures):
    session = make_session("inpaint")
    session.generate("a dog", steps=STEPS, image=pictures[0], mask_image=torch.zeros(64, 64, dtype=torch.bool))
    edited = session.edit("a cat", mask=torch.ones(64, 64, dtype=torch.bool))
    whole = torch.ones(1, 1, 64, 64)
    reference = dense(session.pipe, "a cat", image=pictures[0], mask_image=whole, num_inference_steps=STEPS)
    assert distance(edited.image, reference) < 1e-3


def test_in_painting_edits_in_a_row(make_session, pictures):
    session = make_session("inpaint")
    made = session.generate("a dog", steps=STEPS, image=pictures[0], mask_image=torch.zeros(64, 64, dtype=torch.bool))
    first = session.edit(mask=pictures[2])
    assert torch.equal(first.latents[:, :, ~pictures[3]], made.latents[:, :, ~pictures[3]])
    assert first.macs < 0.6 * first.dense_macs
    session.commit()
    assert torch.equal(session.request.mask_image[0], pictures[2])
    second = session.edit("a bird", mask=pictures[2].roll(20, 1))
    outside = ~pictures[3].roll(5, 1)
    assert torch.equal(second.latents[:, :, outside], first.latents[:, :, outside])


def test_text_pipeline_paints_into_a_mask(make_session, pictures):
    session = make_session()
    made = session.generate("a dog", steps=STEPS, image=pictures[0], mask_image=pictures[2], strength=0.6)
    edited = session.edit("a cat", mask=pictures[3])
    assert torch.equal(edited.latents[:, :, ~pictures[3]], made.latents[:, :, ~pictures[3]])


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_unconditional_edit_of_everything_is_a_new_recording(make_session, distance, pictures, scheduler):
    session = make_session("unconditional", scheduler=scheduler)
    made = session.generate(steps=STEPS, image=pictures[0], strength=0.6)
    edited = session.edit(image=1 - pictures[0])
    session.undo()
    again = session.generate(steps=STEPS, image=1 - pictures[0], strength=0.6)
    assert made.calls == 3 and distance(edited.image, again.image) < 1e-3


def test_unconditional_edit_where_pictures_differ(make_session, pictures):
    session = make_session("unconditional")
    made = session.generate(steps=STEPS, image=pictures[0], strength=0.6)
    edited = session.edit(image=pictures[1])
    assert torch.equal(edited.mask[0], pictures[2]) and edited.vae_effect is None
    assert torch.equal(edited.latents[:, :, ~pictures[2]], made.latents[:, :, ~pictures[2]])


def test_unconditional_sampling_from_noise_is_the_pipelines_own(make_session, distance):
    session = make_session("unconditional")
    made = session.generate(seed=3, steps=2)
    reference = session.pipe(generator=torch.Generator().manual_seed(3), num_inference_steps=2, output_type="np").images
    assert distance(made.image, torch.from_numpy(reference).permute(0, 3, 1, 2)) < 1e-4


def test_unconditional_model_knows_no_prompt(make_session, pictures):
    session = make_session("unconditional")
    with pytest.raises(PromptError, match="DDPMPipeline knows no prompt"):
        session.generate("a dog", steps=2)
    session.generate(steps=2, image=pictures[0])
    with pytest.raises(PromptError, match="DDPMPipeline knows no prompt: edit with a picture"):
        session.edit("a dog")


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        pytest.param("inpaint", {}, "StableDiffusionInpaintPipeline starts from a picture", id="in-painting-without"),
        pytest.param(
            "inpaint", {"image": torch.zeros(3, 64, 64)}, "paints into a mask: give mask_image=", id="no-mask"
        ),
        pytest.param(
            "text", {"mask_image": torch.ones(64, 64, dtype=torch.bool)}, "mask_image without an image", id="no-image"
        ),
        pytest.param("text", {"strength": 0.5}, "strength=0.5 without an image", id="strength"),
        pytest.param(
            "text", {"image": torch.zeros(3, 64, 64), "strength": 1.5}, "strength=1.5: give a number", id="range"
        ),
    ],
)
def test_pictures_that_are_missing(make_session, kind, settings, message):
    with pytest.raises(ChangedInputError, match=message):
        make_session(kind).generate("a dog", steps=2, **settings)


def test_sdedit_with_a_new_prompt_then_from_an_earlier_step(make_session, pictures):
    session = make_session()
    painted = torch.where(pictures[2], 1, session.generate("a dog", steps=STEPS).image)
    session.edit("a cat", image=painted, strength=0.4)
    session.commit()
    assert session.trajectory.texts[0] == (["a dog"], None) and session.trajectory.texts[-1] == (["a cat"], None)
    again = session.edit(image=torch.where(pictures[2], 0, painted), strength=0.8)
    assert again.calls == 4


def test_instruct_pix2pix_edits_by_its_prompt(make_session, pictures):
    session = make_session("instruct")
    made = session.generate("make it red", steps=3, image=pictures[0], image_guidance_scale=1.5, attention_control=1)
    edited = session.edit("make it blue", mask=pictures[3], attention_control=True)
    assert torch.equal(edited.latents[:, :, ~pictures[3]], made.latents[:, :, ~pictures[3]])
    assert not torch.equal(edited.latents, made.latents)
