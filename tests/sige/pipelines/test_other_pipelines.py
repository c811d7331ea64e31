"""Pipelines that differ from Stable Diffusion's in what their U-Net reads: SDXL, and the dense policy for the autoencoder."""

import pytest
import torch

import sige

STEPS = 3
OLD, NEW = "a dog on a sofa", "a cat on a sofa"


@pytest.fixture(scope="module")
def extra_large(make_pipe):
    """A Stable Diffusion XL pipeline: two text encoders, a pooled text beside the prompt's tokens."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    parts = make_pipe().components
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), "projection_dim": 32})
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer_2=parts["tokenizer"],
        unet=unet.eval(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_extra_large_full_mask_edit_is_the_dense_pipeline(make_session, extra_large, dense, distance):
    session = make_session(pipe=extra_large)
    session.generate(OLD, seed=3, steps=STEPS, guidance_scale=5.0)
    edited = session.edit(NEW, mask=torch.ones(16, 16, dtype=torch.bool))
    reference = dense(extra_large, NEW, seed=3, num_inference_steps=STEPS, guidance_scale=5.0)
    assert distance(edited.image, reference) < 1e-3 < distance(session.original.image, reference)


def test_extra_large_is_edited_and_refreshed(make_session, extra_large, where, distance):
    session = make_session(pipe=extra_large)
    made = session.generate(OLD, seed=3, steps=STEPS)
    edited = session.edit(NEW, mask=where)
    assert torch.equal(edited.latents[:, :, ~where], made.latents[:, :, ~where])
    assert edited.macs < 0.6 * edited.dense_macs
    session.commit()
    assert session.refresh() > 0 and distance(session.original.image, edited.image) < 0.05


def test_autoencoder_under_the_dense_policy_remembers_no_map(make_pipe, where):
    session = sige.Session(make_pipe(), vae_policy="dense")
    session.generate(OLD, steps=2)
    assert set(session.vae.state_bytes()) <= {"input", "output"}
    edited = session.edit(NEW, mask=where)
    assert edited.vae_effect.macs == edited.vae_effect.dense_macs
