"""diffusers' own image transformers in small configurations, and one step of each."""

import dataclasses

import torch

TEXT, SIDE = 10, 32  # text tokens; tokens a side of the image


def _text(batch):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, TEXT, 32, generator=generator), torch.randn(batch, 24, generator=generator)


def pixart(layers=2):
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64, in_channels=4, out_channels=8, num_layers=layers,
        sample_size=2 * SIDE, caption_channels=32,
    )  # fmt: skip


def pixart_step(model, x):
    text, _ = _text(len(x))
    kept = torch.ones(len(x), TEXT)
    kept[:, 7:] = 0
    nothing = {"resolution": None, "aspect_ratio": None}
    times = torch.full((len(x),), 500)
    return model(
        x, encoder_hidden_states=text, encoder_attention_mask=kept, timestep=times, added_cond_kwargs=nothing
    ).sample


def sd3(layers=2, **changes):
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=2 * SIDE, patch_size=2, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=24,
        pos_embed_max_size=40, **changes,
    )  # fmt: skip


def sd35(layers=2):
    return sd3(layers, dual_attention_layers=(0,), qk_norm="rms_norm")


def sd3_step(model, x):
    text, pooled = _text(len(x))
    times = torch.full((len(x),), 500.0)
    return model(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=times).sample


def flux(layers=2, single=2):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16, num_layers=layers, num_single_layers=single, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def flux_step(model, x):
    text, pooled = _text(len(x))
    sides = [torch.arange(side) for side in (1, SIDE, SIDE)]
    return model(
        x, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.full((len(x),), 0.5),
        img_ids=torch.cartesian_prod(*sides).float(), txt_ids=torch.zeros(TEXT, 3), guidance=torch.full((len(x),), 3.5),
    ).sample  # fmt: skip


def auraflow(layers=2):
    from diffusers import AuraFlowTransformer2DModel

    return AuraFlowTransformer2DModel(
        sample_size=2 * SIDE, num_mmdit_layers=layers // 2, num_single_dit_layers=layers // 2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64, pos_embed_max_size=SIDE * SIDE,
    )  # fmt: skip


def auraflow_step(model, x):
    text, _ = _text(len(x))
    return model(x, encoder_hidden_states=text, timestep=torch.full((len(x),), 0.5)).sample


def cogview4(layers=2):
    from diffusers import CogView4Transformer2DModel

    return CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=16, num_attention_heads=4, text_embed_dim=32,
        time_embed_dim=16, condition_dim=8, pos_embed_max_size=SIDE, sample_size=2 * SIDE, rope_axes_dim=(16, 16),
    )  # fmt: skip


def cogview4_step(model, x):
    text, _ = _text(len(x))
    size = torch.full((len(x), 2), 2 * SIDE)
    times = torch.full((len(x),), 500)
    return model(
        x, encoder_hidden_states=text, timestep=times, original_size=size, target_size=size, crop_coords=0 * size
    ).sample


def prx(layers=2):
    from diffusers import PRXTransformer2DModel

    return PRXTransformer2DModel(
        in_channels=4, context_in_dim=32, hidden_size=64, num_heads=4, depth=layers, axes_dim=[8, 8]
    )


def prx_step(model, x):
    text, _ = _text(len(x))
    return model(x, timestep=torch.full((len(x),), 0.5), encoder_hidden_states=text).sample


def qwen_image(layers=2):
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=layers, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def qwen_image_step(model, x):
    text, _ = _text(len(x))
    kept = torch.ones(text.shape[:2], dtype=torch.long)
    return model(
        x, encoder_hidden_states=text, encoder_hidden_states_mask=kept, timestep=torch.full((len(x),), 0.5),
        img_shapes=[(1, SIDE, SIDE)] * len(x),
    ).sample  # fmt: skip


def flux2(layers=1, single=2):
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16, num_layers=layers, num_single_layers=single, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


def flux2_step(model, x):
    text, _ = _text(len(x))
    sides = [torch.arange(side) for side in (1, SIDE, SIDE, 1)]
    return model(
        x, encoder_hidden_states=text, timestep=torch.full((len(x),), 0.5), img_ids=torch.cartesian_prod(*sides).float(),
        txt_ids=torch.zeros(TEXT, 4), guidance=torch.full((len(x),), 3.5),
    ).sample  # fmt: skip


def sana():
    """Linear attention, and depthwise convolutions between tokens: the one whose active tokens need a margin."""
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=16, num_layers=2, num_cross_attention_heads=4,
        cross_attention_head_dim=16, cross_attention_dim=64, caption_channels=32, sample_size=SIDE,
    )  # fmt: skip


def sana_step(model, x):
    times = torch.full((len(x),), 500.0)
    return model(x, encoder_hidden_states=_text(len(x))[0], timestep=times).sample


@dataclasses.dataclass
class Network:
    """make: builds the module.   step: one forward on an input.   grid: given to the session.   shape: of the input's samples."""

    make: object
    step: object
    grid: tuple | None
    shape: tuple

    @property
    def side(self):
        return self.grid[0] if self.grid else self.shape[-1]

    def spread(self, mask):
        """A mask (B, H, W) as one that broadcasts against inputs and outputs."""
        return mask.flatten(1)[..., None] if self.grid else mask[:, None]


NETWORKS = {
    "pixart": Network(pixart, pixart_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "sd3": Network(sd3, sd3_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "sd3.5": Network(sd35, sd3_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "flux": Network(flux, flux_step, (SIDE, SIDE), (SIDE * SIDE, 16)),
    "flux2": Network(flux2, flux2_step, (SIDE, SIDE), (SIDE * SIDE, 16)),
    "qwen_image": Network(qwen_image, qwen_image_step, (SIDE, SIDE), (SIDE * SIDE, 16)),
    "auraflow": Network(auraflow, auraflow_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "cogview4": Network(cogview4, cogview4_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "prx": Network(prx, prx_step, None, (4, 2 * SIDE, 2 * SIDE)),
    "sana": Network(sana, sana_step, None, (4, SIDE, SIDE)),
}
