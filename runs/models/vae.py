"""Stable Diffusion's picture encoder and decoder: the two halves of diffusers' AutoencoderKL as modules of their own.

``part`` of the config chooses: ``encoder`` takes a picture (B, 3, H, W) to the moments of its latents (B, 8, H/8, W/8), means before
log variances; ``decoder`` takes latents (B, 4, H/8, W/8) to a picture. Paths inside are those of AutoencoderKL.
"""

import torch
from torch import nn

from sige.runs.errors import JobFailure
from sige.runs.models import diffusers_folder, latents

CHANGED = (0,)
HALVES = ("encoder", "decoder")


class Encoder(nn.Module):
    """``encoder`` and ``quant_conv`` of an AutoencoderKL."""

    def __init__(self, autoencoder):
        super().__init__()
        self.encoder, self.quant_conv = autoencoder.encoder, autoencoder.quant_conv

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Moments (B, 8, H/8, W/8) of pictures (B, 3, H, W)."""
        return self.quant_conv(self.encoder(sample))


class Decoder(nn.Module):
    """``post_quant_conv`` and ``decoder`` of an AutoencoderKL."""

    def __init__(self, autoencoder):
        super().__init__()
        self.post_quant_conv, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) of latents (B, 4, H/8, W/8), not scaled."""
        return self.decoder(self.post_quant_conv(latent))


def _check(model: dict) -> None:
    if model["part"] not in HALVES:
        raise JobFailure("invalid", f"{model['name']} has part={model['part']!r}; choose encoder or decoder.")


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of pretrained ones."""
    return diffusers_folder.digest(model, "vae")


def build(model: dict) -> nn.Module:
    """The half with random weights of the config's seed, or the pretrained ones. Without data on the meta device."""
    from diffusers import AutoencoderKL

    _check(model)
    if model["weights"] == "pretrained":
        whole = diffusers_folder.load(AutoencoderKL, model, "vae")
    else:
        torch.manual_seed(model["seed"])
        whole = AutoencoderKL(**model["config"])
    half = Encoder(whole) if model["part"] == "encoder" else Decoder(whole)
    return half.float().eval().requires_grad_(False)


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
    """For the encoder the picture itself, (1, 3, H, W); for the decoder its stand-in latents (``latents.py``), unscaled,
    (1, 4, H/8, W/8). There is no noise in either: ``seed`` changes nothing."""
    _check(model)
    if model["part"] == "encoder":
        return (picture[None],)
    config = model["config"]
    return (latents.stand_in(picture, config["latent_channels"]) / config["scaling_factor"],)


def forward(module: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """Moments of the latents, or the picture."""
    return module(sample)
