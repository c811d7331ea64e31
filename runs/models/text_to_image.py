"""A small diffusion pipeline of stock diffusers parts, made in code: what tests and examples generate and edit pictures with.

    pipe = small_pipeline(seed=0, size=64, kind="text")
    picture = pipe("a dog on a sofa", num_inference_steps=4, output_type="pt").images  # (1, 3, 64, 64) in [0, 1]

Its classes are those of Stable Diffusion, its numbers small: a U-Net of three levels with attention at the two upper ones, a CLIP text
encoder of two layers, an autoencoder that reduces by 4, DDIM. Weights are random and seeded, so pictures show no scene, but they
depend on prompt, seed and picture as real ones do: gains are set so that what each part gives out has the scale that the next
part expects, and cross-attention is sharp enough for a changed word to change the picture. The U-Net predicts velocity, as that of
Stable Diffusion 2.1 does; with a network that never learned to predict noise, latents would grow without bound.

All kinds share text encoder and autoencoder, and the U-Net but for its first convolution, as in-painting and InstructPix2Pix share
theirs with the model that they were made from.
"""

import torch

from sige.runs.errors import JobFailure
from sige.runs.models import small_tokenizer

KINDS = {"text": 4, "inpaint": 9, "instruct": 8, "unconditional": 3}  # channels that the U-Net takes
REDUCTION = 4  # picture pixels a latent
_CHANNELS = (32, 64, 128)
_TEXT_WIDTH = 64
_SCALING = 0.18215  # latents are the autoencoder's times this, as in Stable Diffusion
_SHARPER = 4.0  # factor on queries and keys of cross-attention: random ones look at all words alike


def small_pipeline(seed=0, size=64, kind="text"):
    """A stock pipeline with a few million seeded random parameters, float32 on the CPU, in eval mode, without a progress bar.

    seed: of all weights.   size: the picture's side in pixels, a multiple of 16; the pipeline's default height and width.
    kind: ``text`` StableDiffusionPipeline; ``inpaint`` StableDiffusionInpaintPipeline (9 channels); ``instruct``
    StableDiffusionInstructPix2PixPipeline (8 channels); ``unconditional`` DDPMPipeline on pixels, without text.
    JobFailure (invalid) for another kind or size.
    """
    import diffusers

    if kind not in KINDS:
        raise JobFailure("invalid", f"no small pipeline of the kind {kind!r}; choose of {', '.join(KINDS)}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size % 16:
        raise JobFailure("invalid", f"the small pipeline's pictures have a side of {size!r}; give a multiple of 16.")
    with torch.random.fork_rng(devices=[]):
        if kind == "unconditional":
            pipe = diffusers.DDPMPipeline(unet=_pixel_unet(seed, size), scheduler=_scheduler("DDPMScheduler"))
        else:
            pipe = _with_text(seed, size, kind)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_text(seed, size, kind):
    import diffusers

    tokenizer = small_tokenizer.make()
    parts = {
        "vae": autoencoder(seed, size),
        "text_encoder": text_encoder(seed, tokenizer),
        "tokenizer": tokenizer,
        "unet": _unet(seed, size // REDUCTION, KINDS[kind]),
        "scheduler": _scheduler("DDIMScheduler"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    name = {"text": "", "inpaint": "Inpaint", "instruct": "InstructPix2Pix"}[kind]
    return getattr(diffusers, f"StableDiffusion{name}Pipeline")(**parts)


def _scheduler(name):
    """Stable Diffusion's schedule of noise, velocity predicted."""
    import diffusers

    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    more = {"set_alpha_to_one": False, "steps_offset": 1} if name == "DDIMScheduler" else {}
    return getattr(diffusers, name)(**common, **more, prediction_type="v_prediction")


def _unet(seed, side, channels):
    """The text-conditioned U-Net; of another number of input channels than 4 only the first convolution differs."""
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": side,
        "in_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": _CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": _TEXT_WIDTH,
        "attention_head_dim": (2, 4, 8),  # heads of each level, by diffusers' naming
        "norm_num_groups": 16,
        "use_linear_projection": True,
    }
    torch.manual_seed(seed)
    model = UNet2DConditionModel(**{**config, "in_channels": 4})
    for name, weight in model.named_parameters():
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            weight.data *= _SHARPER
    _normalise(model.conv_out, lambda: model(*_call(side)).sample, 1.0)
    if channels != 4:
        wider = UNet2DConditionModel(**config)
        own = wider.conv_in.weight.detach().clone()
        own[:, :4] = model.conv_in.weight.detach()
        wider.load_state_dict({**model.state_dict(), "conv_in.weight": own})
        model = wider
    return model.eval().requires_grad_(False)


def _call(side):
    """Arguments of a call of the text U-Net: what its output's scale is measured with."""
    return torch.randn(2, 4, side, side), 500, torch.randn(2, small_tokenizer.LENGTH, _TEXT_WIDTH)


def _pixel_unet(seed, size):
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=size,
        layers_per_block=1,
        block_out_channels=_CHANNELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )
    _normalise(model.conv_out, lambda: model(torch.randn(1, 3, size, size), 500).sample, 1.0)
    return model.eval().requires_grad_(False)


def text_encoder(seed, tokenizer, width=_TEXT_WIDTH):
    """A CLIP text encoder of two layers that gives (B, tokens, width)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed + 1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=small_tokenizer.LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def autoencoder(seed, size, channels=(32, 64, 64)):
    """An autoencoder with a level for each of ``channels``, which halves the picture's sides between them."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed + 2)
    model = AutoencoderKL(
        sample_size=size,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        norm_num_groups=channels[0] // 2,
        scaling_factor=_SCALING,
    )
    side = size >> len(channels) - 1
    _normalise(
        model.quant_conv, lambda: model.encode(torch.rand(1, 3, size, size) * 2 - 1).latent_dist.mean, 1 / _SCALING
    )
    # Half of the range from -1 to 1, so that few pixels are cut off.
    _normalise(model.decoder.conv_out, lambda: model.decode(torch.randn(1, 4, side, side) / _SCALING).sample, 0.4)
    _narrow(model.quant_conv)
    return model.eval().requires_grad_(False)


def _normalise(layer, output, deviation):
    """Scale a last layer so that what it gives out has mean 0 in each channel and a standard deviation over everything."""
    with torch.no_grad():
        found = output()
        layer.weight.mul_(deviation / (found - found.mean((0, 2, 3), keepdim=True)).std())
        shift = output().mean((0, 2, 3))
        layer.bias[: len(shift)] -= shift


def _narrow(layer):
    """Log variances of the encoder's latents small and constant: sampling from them then gives their means, near enough."""
    with torch.no_grad():
        layer.weight[4:], layer.bias[4:] = 0.0, -12.0
