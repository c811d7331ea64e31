"""Masks with and without attention control, found on a stock pipeline with random weights."""

import dataclasses

import pytest
import torch

from sige import prompt_masks
from sige.errors import MaskError, PromptError
from sige.pipelines import mask_search

SIDE = 16  # of the latents


def letters_tokenizer():
    """A CLIP tokenizer that reads letter by letter."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=40)


@pytest.fixture(scope="module")
def pipe():
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = letters_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
    )
    for name, parameter in unet.named_parameters():
        if "attn2.to_" in name and name.endswith("weight"):
            parameter.data *= 4
    made = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


OLD, NEW = "a dog on a sofa", "a dog with a hat on a sofa"
SETTINGS = dict(seed=0, steps=8, mask_steps=(2, 3))


@pytest.fixture(scope="module")
def found(pipe):
    return mask_search.search(pipe, OLD, NEW, **SETTINGS)


def latents_after(pipe, prompt, count):
    """The pipeline as it is, its latents collected: all steps are run."""
    kept = []

    def keep(pipe, step, timestep, tensors):
        kept.append(tensors["latents"].clone())
        return {}

    generator = torch.Generator().manual_seed(0)
    pipe(prompt, num_inference_steps=8, generator=generator, output_type="latent", callback_on_step_end=keep)
    return kept[:count]


def test_without_control_it_is_the_mask_of_two_plain_runs(pipe, found):
    new, old = latents_after(pipe, NEW, 3), latents_after(pipe, OLD, 3)
    assert torch.equal(found[False].mask, prompt_masks.prompt_mask(new, old, steps=(2, 3)))


def test_the_mask_is_cut_from_the_map(found):
    assert all(torch.equal(one.mask, prompt_masks.mask_of_map(one.difference)) for one in found.values())


def test_control_keeps_an_exchanged_word_nearer_to_the_old_picture(pipe):
    searched = mask_search.search(pipe, OLD, "a cat on a sofa", **SETTINGS)
    assert searched[True].distance[-1] < searched[False].distance[-1]


def test_each_step_up_to_the_last_has_a_map(found):
    assert [(len(one.by_step), one.by_step[0].shape) for one in found.values()] == [(3, (1, SIDE, SIDE))] * 2


def test_bytes_are_those_of_the_maps_that_control_needs(found):
    # 3 calls, 40 tokens, float16; 3 layers of 2 heads at 16x16, 4 layers of 4 heads at 8x8
    expected = 3 * 40 * 2 * (3 * 2 * 256 + 4 * 4 * 64)
    assert (found[False].map_bytes, found[True].map_bytes) == (0, expected)


def test_the_pipeline_is_left_as_it_was(pipe, found):
    hooked = [name for name, module in pipe.unet.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == []


def test_the_same_prompt_has_an_empty_mask(pipe):
    one = mask_search.search(pipe, OLD, OLD, controls=(False,), **SETTINGS)[False]
    assert (bool(one.mask.any()), one.distance) == (False, [0, 0, 0])


def test_a_weight_alone_changes_the_picture(pipe):
    searched = mask_search.search(pipe, OLD, OLD, weights={"dog": 3.0}, **SETTINGS)
    assert all(one.distance[0] > 1e-4 for one in searched.values())


@pytest.mark.parametrize(
    "changed, error, message",
    [
        pytest.param(
            {"mask_steps": (3, 9)}, MaskError, r"steps are \(3, 9\): give .* t2 <= 8, all steps", id="too many"
        ),
        pytest.param({"mask_steps": (0, 3)}, MaskError, r"steps are \(0, 3\)", id="from 0"),
        pytest.param({"weights": {"cat": 2}}, PromptError, "'cat' has a weight", id="weight of another word"),
    ],
)
def test_bad_input_is_named_before_anything_runs(pipe, changed, error, message):
    with pytest.raises(error, match=message):
        mask_search.search(pipe, OLD, NEW, **{**SETTINGS, **changed})


def test_results_are_read_only(found):
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[True].mask = None
