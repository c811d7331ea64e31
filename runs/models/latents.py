"""Latents of a picture without a picture encoder, and noise on them: what a latent diffusion model of random weights is fed.

A stand-in latent holds the averages of the picture over 8x8 pixels (32x32 for Sana), mixed into the latent's channels by a fixed
random matrix. It differs wherever the picture does and nowhere else. A trained encoder's differs a little everywhere, because its
norms and its attention see the whole picture; editing pipelines put the original's latent back outside the mask.
"""

import torch
import torch.nn.functional as F

from sige.runs.errors import JobFailure

REDUCTION = 8  # pixels of the picture along a side of one latent position, of most autoencoders


def stand_in(picture: torch.Tensor, channels: int = 4, reduction: int = REDUCTION) -> torch.Tensor:
    """(1, channels, H/r, W/r) of a picture (C, H, W) in [-1, 1] and r = ``reduction``; about as large as scaled latents of an encoder.

    JobFailure(invalid) for a picture whose sides are not multiples of r.
    """
    height, width = picture.shape[1:]
    if height % reduction or width % reduction:
        raise JobFailure(
            "invalid", f"a picture of {height}x{width} has no latents: its sides must be multiples of {reduction}."
        )
    mixture = torch.randn(channels, picture.shape[0], generator=torch.Generator().manual_seed(0))
    return torch.einsum("oc,bchw->bohw", mixture, F.avg_pool2d(picture[None], reduction))


def signal_share(betas: dict, timestep: int) -> float:
    """Share of the signal's variance that is left at ``timestep``: the product of 1 - beta up to it. ``betas`` holds ``start``,
    ``end`` and ``steps``; their square roots are spaced evenly, as in every release of Stable Diffusion."""
    if not 0 <= timestep < betas["steps"]:
        raise JobFailure("invalid", f"timestep={timestep} is not one of the schedule's 0 to {betas['steps'] - 1}.")
    roots = torch.linspace(betas["start"] ** 0.5, betas["end"] ** 0.5, betas["steps"], dtype=torch.float64)
    return (1 - roots**2).cumprod(0)[timestep].item()


def noised(clean: torch.Tensor, betas: dict, timestep: int, seed: int) -> torch.Tensor:
    """``clean`` at ``timestep``: sqrt(a) x + sqrt(1 - a) e, with the same noise e for the same seed and shape."""
    share = signal_share(betas, timestep)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return share**0.5 * clean + (1 - share) ** 0.5 * noise
