"""Methods that run DDIM backwards first: DiffEdit, Plug-and-Play, pix2pix-zero."""

import diffusers
import pytest
import torch

from sige.runs.editing import attention, inversion, pictures, registry
from sige.runs.editing.task import Call
from sige.runs.errors import UserError

ONE, TWO, THREE = (Call(batch, 16, 16) for batch in (1, 2, 3))
GIVEN = {"given_mask": True}
METHODS = ("diffedit", "plug_and_play", "pix2pix_zero")


@pytest.fixture(scope="module")
def picture():
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def clean(pipe, picture):
    with torch.no_grad():
        return pictures.encoded(pipe, picture)


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def there_and_back(pipe, clean):
    """Relative distance of latents from those that were run backwards and forwards again without guidance."""

    def run(steps):
        forwards, backwards = inversion.schedulers(pipe, steps)
        text = pictures.texts(pipe, "a dog")
        with torch.no_grad():
            latents = inversion.run(pipe, clean, text, backwards)[-1]
            for timestep in forwards.timesteps:
                prediction = pipe.unet(latents, timestep, encoder_hidden_states=text).sample
                latents = forwards.step(prediction, timestep, latents).prev_sample
        return distance(latents, clean)

    return run


def test_backwards_and_forwards_comes_back(there_and_back):
    assert there_and_back(50) < 0.3


def test_more_steps_come_back_nearer(there_and_back):
    assert there_and_back(50) < 0.6 * there_and_back(10)


def test_time_steps_are_the_same_in_both_directions(pipe):
    forwards, backwards = inversion.schedulers(pipe, 7)
    assert forwards.timesteps.tolist() == backwards.timesteps.tolist()[::-1]


def test_the_schedule_is_that_of_the_pipeline(pipe):
    forwards, backwards = inversion.schedulers(pipe, 7)
    expected = pipe.scheduler.alphas_cumprod
    assert torch.equal(forwards.alphas_cumprod, expected) and torch.equal(backwards.alphas_cumprod, expected)
    assert forwards.config.prediction_type == backwards.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("method", METHODS)
def test_another_scheduler_of_the_pipeline_gives_the_same_edit(pipe, make_task, picture, method, monkeypatch):
    task = make_task(image=picture, steps=3)
    expected = registry.edit(method, pipe, task).image
    other = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    monkeypatch.setattr(pipe, "scheduler", other)
    assert torch.equal(registry.edit(method, pipe, task).image, expected)


def test_a_scheduler_without_a_schedule_of_betas_is_named(pipe, make_task, picture, monkeypatch):
    monkeypatch.setattr(pipe, "scheduler", diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no schedule of betas"):
        registry.edit("diffedit", pipe, make_task(image=picture))


@pytest.mark.parametrize(
    "method, parts",
    [
        pytest.param("diffedit", {"mask": [TWO] * 10, "invert": [ONE] * 4, "edit": [TWO] * 4}, id="diffedit"),
        pytest.param("plug_and_play", {"invert": [ONE] * 5, "edit": [THREE] * 5}, id="plug_and_play"),
        pytest.param(
            "pix2pix_zero", {"invert": [ONE] * 5, "reference": [TWO] * 5, "edit": [TWO] * 10}, id="pix2pix_zero"
        ),
    ],
)
def test_calls(pipe, make_task, picture, method, parts):
    result = registry.edit(method, pipe, make_task(image=picture, steps=5))
    assert result.calls_by_part == parts and set(result.seconds) == set(parts)


# -- DiffEdit ----------------------------------------------------------------------------------------------------------


def test_latents_outside_the_mask_stay(pipe, make_task, picture, clean, half):
    result = registry.edit("diffedit", pipe, make_task(image=picture, mask=half, options=GIVEN))
    assert torch.equal(result.latents[:, :, ~half], clean[:, :, ~half])
    assert not torch.isclose(result.latents[:, :, half], clean[:, :, half]).any()


def test_a_given_mask_needs_no_calls(pipe, make_task, picture, half):
    result = registry.edit("diffedit", pipe, make_task(image=picture, mask=half, options=GIVEN))
    assert torch.equal(result.mask, half) and "mask" not in result.calls_by_part


def test_unless_told_the_mask_is_its_own(pipe, make_task, picture, half):
    task = make_task(image=picture, mask=half)
    own = registry.edit("diffedit", pipe, make_task(image=picture))
    assert torch.equal(registry.edit("diffedit", pipe, task).mask, own.mask)


def test_the_mask_is_where_estimates_differ(pipe, make_task, picture, monkeypatch):
    """A U-Net whose estimate depends on the text on the left alone."""
    width = 16

    def forward(sample, timestep, encoder_hidden_states):
        told = encoder_hidden_states[:, 2, 0, None, None, None] * torch.ones_like(sample)  # the second word
        told[..., width // 2 :] = 0
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=told)

    with monkeypatch.context() as patched:
        patched.setattr(pipe.unet, "forward", forward)
        mask = registry.edit("diffedit", pipe, make_task(image=picture)).mask
    assert mask[:, : width // 2].all() and not mask[:, width // 2 :].any()


def test_prompts_that_agree_have_an_empty_mask(pipe, make_task, picture, clean):
    result = registry.edit("diffedit", pipe, make_task(new_prompt="a dog on a sofa", image=picture))
    assert not result.mask.any() and torch.equal(result.latents, clean)


# -- Plug-and-Play -----------------------------------------------------------------------------------------------------


def nearness(pipe, make_task, picture, clean, **options):
    """Distance of the edit's latents from the original's, with injection as told."""
    task = make_task("a dog", "a castle under a cloudy sky", image=picture, steps=10, options=options)
    return distance(registry.edit("plug_and_play", pipe, task).latents, clean)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"feature_steps": 1, "attention_steps": 0}, id="features"),
        pytest.param({"feature_steps": 1, "attention_steps": 1}, id="features and attention"),
    ],
)
def test_injection_keeps_the_structure(pipe, make_task, picture, clean, options):
    free = nearness(pipe, make_task, picture, clean, feature_steps=0, attention_steps=0)
    assert nearness(pipe, make_task, picture, clean, **options) < free


def test_with_one_prompt_and_no_guidance_the_original_comes_back(pipe, make_task, picture, clean):
    task = make_task("a dog", "a dog", image=picture, steps=50, guidance_scale=1.0)
    assert distance(registry.edit("plug_and_play", pipe, task).latents, clean) < 0.3


def test_attention_is_taken_over_after_the_feature_block_alone(pipe, make_task, picture, monkeypatch):
    seen = []
    installed = attention.installed

    def listening(unet, make):
        def listen(name, layer):
            made = make(name, layer)
            seen.extend([name] if made else [])
            return made

        return installed(unet, listen)

    monkeypatch.setattr(attention, "installed", listening)
    registry.edit("plug_and_play", pipe, make_task(image=picture, steps=1))
    assert seen == [
        f"up_blocks.{block}.attentions.{place}.transformer_blocks.0.attn1" for block, place in ((1, 1), (2, 0), (2, 1))
    ]


def test_more_steps_backwards(pipe, make_task, picture):
    result = registry.edit("plug_and_play", pipe, make_task(image=picture, options={"inversion_steps": 12}))
    assert len(result.calls_by_part["invert"]) == 12 and len(result.calls_by_part["edit"]) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param({"inversion_steps": 5}, "inversion_steps=5; give a multiple of the 4 steps", id="steps"),
        pytest.param(
            {"feature_block": "up_blocks.9"}, "no residual block 'up_blocks.9'; there are down_blocks.0", id="block"
        ),
        pytest.param({"feature_steps": -1}, "feature_steps=-1; give a share", id="share"),
    ],
)
def test_plug_and_play_refuses(pipe, make_task, picture, options, message):
    with pytest.raises(UserError, match=message):
        registry.edit("plug_and_play", pipe, make_task(image=picture, options=options))


# -- pix2pix-zero ------------------------------------------------------------------------------------------------------


def map_loss(pipe, latents, timestep, text, reference):
    """How far the maps of a call on latents lie from the remembered ones."""
    from sige.runs.editing.pix2pix_zero import _Maps

    maps = _Maps()
    with torch.no_grad(), attention.installed(pipe.unet, maps.processor):
        pipe.unet(latents, timestep, encoder_hidden_states=text)
    return float(sum(attention.scores_apart(a, b) for a, b in zip(maps.take(), reference, strict=True)))


def test_a_step_of_descent_brings_maps_nearer(pipe, clean):
    from sige.runs.editing.pix2pix_zero import _descended, _Maps

    maps, timestep = _Maps(), torch.tensor(500)
    old, new = pictures.texts(pipe, "a dog on a sofa", "a castle").split(1)
    with torch.no_grad(), attention.installed(pipe.unet, maps.processor):
        pipe.unet(torch.cat([clean] * 2), timestep, encoder_hidden_states=torch.cat([old, old]))
        reference, text = maps.take(), torch.cat([old, new])
        moved = _descended(pipe, clean, timestep, text, maps, reference, 0.01)
    before = map_loss(pipe, torch.cat([clean] * 2), timestep, text, reference)
    assert 0 < map_loss(pipe, moved, timestep, text, reference) < before


def test_no_guidance_by_maps_is_plain_sampling(pipe, make_task, picture):
    options = {"guidance_amount": 0.0, "regularisation_steps": 0}
    task = make_task(image=picture, options=options)
    result = registry.edit("pix2pix_zero", pipe, task)
    with torch.no_grad():
        forwards, backwards = inversion.schedulers(pipe, task.steps)
        old, empty, new = pictures.texts(pipe, task.prompt, "", task.new_prompt).split(1)
        latents = inversion.run(pipe, pictures.encoded(pipe, picture), old, backwards)[-1]
        for timestep in forwards.timesteps:
            both = pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=torch.cat([empty, new])).sample
            latents = forwards.step(pictures.guided(both, task.guidance_scale), timestep, latents).prev_sample
    assert torch.allclose(result.latents, latents, atol=1e-3)


def test_noise_is_whitened():
    from sige.runs.editing.pix2pix_zero import OPTIONS, _distance_from_normal, _Whiten

    class Scheduler:
        class config:
            prediction_type = "epsilon"

    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    correlated = 1.5 * (noise + noise.roll(1, 3)) + 0.5
    whiten = _Whiten(Scheduler, {**OPTIONS, "regularisation_steps": 20}, torch.Generator().manual_seed(0))
    made = whiten(correlated, None, None)
    assert _distance_from_normal(made) < 0.9 * _distance_from_normal(correlated)


def test_sentences_give_the_direction(pipe, make_task, picture):
    base = {"image": picture, "steps": 2}
    plain = registry.edit("pix2pix_zero", pipe, make_task(**base))
    sentences = {"source_sentences": ["a dog on a sofa"], "target_sentences": ["a cat on a sofa"]}
    same = registry.edit("pix2pix_zero", pipe, make_task(**base, options=sentences))
    other = registry.edit("pix2pix_zero", pipe, make_task(**base, options={**sentences, "target_sentences": ["a bus"]}))
    assert torch.equal(plain.image, same.image) and not torch.allclose(plain.image, other.image, atol=1e-3)


def test_one_list_of_sentences_is_not_enough(pipe, make_task, picture):
    with pytest.raises(UserError, match="give both lists or neither"):
        registry.edit("pix2pix_zero", pipe, make_task(image=picture, options={"source_sentences": ["a dog"]}))


@pytest.mark.parametrize("method", METHODS)
def test_the_pipeline_is_left_as_it_was(pipe, make_task, picture, method):
    before = dict(pipe.unet.attn_processors)
    registry.edit(method, pipe, make_task(image=picture, steps=2))
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before) and not pipe.unet._forward_pre_hooks
