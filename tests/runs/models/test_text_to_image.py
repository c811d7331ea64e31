"""The small pipelines: stock classes, seeded, made without a network, with pictures that depend on what they are asked for."""

import pytest
import torch
from PIL import Image

from sige.runs.errors import JobFailure
from sige.runs.models import small_tokenizer, text_to_image

CLASSES = {
    "text": "StableDiffusionPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "instruct": "StableDiffusionInstructPix2PixPipeline",
    "unconditional": "DDPMPipeline",
}


@pytest.fixture(scope="module")
def pipes():
    return {kind: text_to_image.small_pipeline(kind=kind) for kind in CLASSES}


def picture(pipe, prompt="a dog on a sofa", seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=3, generator=generator, output_type="pt", **more).images


@pytest.mark.parametrize("kind, name", CLASSES.items())
def test_each_kind_is_a_stock_pipeline(pipes, kind, name):
    assert type(pipes[kind]).__name__ == name


@pytest.mark.parametrize("kind", CLASSES)
def test_a_few_million_parameters(pipes, kind):
    assert 1e6 < sum(weight.numel() for weight in pipes[kind].unet.parameters()) < 1e7


def test_pictures_have_the_size_that_was_asked_for():
    assert picture(text_to_image.small_pipeline(size=48)).shape == (1, 3, 48, 48)


def test_pictures_vary_and_are_rarely_cut_off(pipes):
    made = picture(pipes["text"])
    assert made.std() > 0.05 and ((made == 0) | (made == 1)).float().mean() < 0.1


def test_the_same_seed_gives_the_same_picture(pipes):
    again = text_to_image.small_pipeline()
    assert torch.equal(picture(pipes["text"]), picture(again))


def test_weights_depend_on_the_seed(pipes):
    assert not torch.allclose(picture(pipes["text"]), picture(text_to_image.small_pipeline(seed=1)), atol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"prompt": "a cat on a sofa"}, id="one word"),
        pytest.param({"prompt": "a castle under a cloudy sky"}, id="prompt"),
        pytest.param({"seed": 1}, id="start noise"),
        pytest.param({"guidance_scale": 1.0}, id="guidance"),
    ],
)
def test_pictures_depend_on(pipes, change):
    before, after = picture(pipes["text"]), picture(pipes["text"], **change)
    assert (before - after).abs().mean() > 0.01


def test_a_word_changes_a_picture_less_than_a_prompt(pipes):
    base, word, prompt = (
        picture(pipes["text"], text) for text in ("a dog on a sofa", "a cat on a sofa", "a castle under a cloudy sky")
    )
    assert (word - base).abs().mean() < (prompt - base).abs().mean()


def test_in_painting_and_instructions_take_a_picture(pipes):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    hole = Image.new("L", (64, 64), 255)
    filled = picture(pipes["inpaint"], image=image, mask_image=hole)
    edited = picture(pipes["instruct"], image=image)
    assert filled.shape == edited.shape == (1, 3, 64, 64) and not torch.allclose(filled, edited, atol=0.01)


def test_kinds_share_all_but_the_first_convolution(pipes):
    mine, other = pipes["text"].unet.state_dict(), pipes["inpaint"].unet.state_dict()
    different = [
        name for name in mine if mine[name].shape != other[name].shape or not torch.equal(mine[name], other[name])
    ]
    assert different == ["conv_in.weight"]


def test_without_text(pipes):
    made = pipes["unconditional"](
        num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert made.shape == (1, 64, 64, 3) and made.std() > 0.05


def test_making_one_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    text_to_image.small_pipeline(size=16)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param({"kind": "video"}, "no small pipeline of the kind 'video'; choose of text, inpaint", id="kind"),
        pytest.param({"size": 50}, "have a side of 50; give a multiple of 16", id="size"),
        pytest.param({"size": 64.0}, "have a side of 64.0; give a multiple of 16", id="size is no integer"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(JobFailure, match=message):
        text_to_image.small_pipeline(**arguments)


def test_common_words_are_one_token_each():
    tokenizer = small_tokenizer.make()
    assert {word: len(tokenizer(word, add_special_tokens=False).input_ids) for word in small_tokenizer.WORDS} == (
        dict.fromkeys(small_tokenizer.WORDS, 1)
    )


def test_other_words_fall_into_letters_and_come_back():
    tokenizer = small_tokenizer.make()
    tokens = tokenizer("a zebra é", add_special_tokens=False).input_ids
    assert len(tokens) > 5 and tokenizer.decode(tokens) == "a zebra é"


def test_a_prompt_has_77_tokens():
    tokenizer = small_tokenizer.make()
    read = tokenizer("a dog " * 60, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    assert len(read.input_ids) == 77 and read.input_ids[-1] == tokenizer.eos_token_id
