"""A session on a pipeline without a U-Net, PixArt's: records and edits its transformer, and says so where more is asked."""

import dataclasses

import pytest
import torch

import sige
from sige.errors import ModelError

SIDE, STEPS = 16, 3  # of the latents; of the sampler


class Words:
    """A tokenizer: a number for each word."""

    model_max_length = 6

    def __call__(self, texts, max_length=6, **options):
        from transformers import BatchEncoding

        numbers, known = (torch.zeros(len(texts), max_length, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(texts):
            for place, word in enumerate(text.split()):
                numbers[row, place], known[row, place] = 1 + sum(map(ord, word)) % 90, 1
        return BatchEncoding({"input_ids": numbers, "attention_mask": known})

    def batch_decode(self, numbers):
        return [""] * len(numbers)


@pytest.fixture(scope="module")
def pipe():
    """A PixArtAlphaPipeline of two small blocks."""
    import diffusers
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE, num_layers=2, patch_size=2, num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        cross_attention_dim=16, caption_channels=16, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, sample_size=2 * SIDE,
    )  # fmt: skip
    text = T5EncoderModel(T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    made = diffusers.PixArtAlphaPipeline(
        Words(), text.eval(), vae.eval(), transformer.eval(), diffusers.DDIMScheduler()
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def session(pipe):
    dials = {"min_resolution": 4, "block": 1, "dilation": 0, "dense_above": None}
    return sige.Session(pipe, dataclasses.replace(sige.policy("incremental"), **dials))


def test_its_usual_policy_is_that_of_tokens(pipe):
    assert sige.Session(pipe).policy is sige.policy("tokens")


@pytest.fixture(scope="module")
def noise():
    """Latents (1, 4, 16, 16): the recording's, and others."""
    return torch.randn(2, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).unbind(0)


def picture(pipe, latents, after_step=None):
    """(latents that the pipeline ends with, those after each step); ``after_step(number, latents)`` may write to them."""
    seen = []

    def step(number, _, latents):
        if after_step is not None:
            after_step(number, latents)
        seen.append(latents.clone())

    out = pipe(
        "a dog", latents=latents, num_inference_steps=STEPS, callback=step, output_type="latent", height=2 * SIDE,
        width=2 * SIDE, use_resolution_binning=False, clean_caption=False,
    )  # fmt: skip
    return out.images, seen


def test_every_step_of_the_pipeline_is_recorded_and_nothing_changed(pipe, session, noise):
    with session.record():
        found, _ = picture(pipe, noise[0])
    assert (session.recorded_steps, torch.equal(found, picture(pipe, noise[0])[0])) == (STEPS, True)


def test_an_edit_of_everything_is_the_pipelines_own_picture(pipe, session, noise):
    with session.record():
        picture(pipe, noise[0])
    with session.edit(torch.ones(SIDE, SIDE, dtype=torch.bool)):
        found, _ = picture(pipe, noise[1])
    expected, _ = picture(pipe, noise[1])
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_an_edit_inside_a_mask_is_sparse_and_leaves_the_rest(pipe, session, noise):
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[4:8, 6:10] = True
    with session.record():
        before, recorded = picture(pipe, noise[0])

    def put_back(number, latents):
        latents[..., ~mask] = recorded[number][..., ~mask]

    with session.edit(mask) as effect:
        after, _ = picture(pipe, torch.where(mask, *noise[::-1]), put_back)
    same = (after == before).all(1)[0]
    assert (same[~mask].all().item(), same[mask].any().item(), effect.steps) == (True, False, STEPS)
    assert effect.macs < 0.4 * effect.dense_macs


@pytest.mark.parametrize(
    "ask, what",
    [
        pytest.param(lambda session: session.generate("a dog"), r"generate\(\) needs", id="generate"),
        pytest.param(lambda session: session.refresh(), r"refresh\(\) needs", id="refresh"),
        pytest.param(lambda session: session.edit("a cat"), r"edit\(\) by prompt or picture needs", id="prompt"),
        pytest.param(
            lambda session: session.edit(mask=torch.ones(SIDE, SIDE) > 0, prompt="a cat"),
            r"edit\(\) by prompt or picture needs",
            id="prompt and mask",
        ),
        pytest.param(
            lambda session: session.edit(image=torch.zeros(3, SIDE, SIDE)),
            r"edit\(\) by prompt or picture needs",
            id="picture",
        ),
    ],
)
def test_what_needs_a_unet_says_what_to_do_instead(session, ask, what):
    message = (
        rf"^PixArtAlphaPipeline has no U-Net, which {what}: call the pipeline inside session.record\(\) and again inside "
        r"session.edit\(mask\), on this session or on one of pipe.transformer$"
    )
    with pytest.raises(ModelError, match=message):
        ask(session)


def test_a_saved_recording_opens_with_the_pipeline(pipe, session, noise, tmp_path):
    with session.record():
        picture(pipe, noise[0])
    session.save(tmp_path)
    again = sige.Session.load(tmp_path, pipe)
    with pytest.raises(ModelError, match="^PixArtAlphaPipeline has no U-Net"):
        again.generate("a dog")
    assert again.recorded_steps == STEPS
