"""What a session on a pipeline hands out: pictures, and what making them cost."""

import dataclasses

import torch

from sige.effect import Effect


@dataclasses.dataclass(frozen=True)
class Picture:
    """Pictures of a batch, and the work that they took.

    image: (B, 3, H, W) float32 in [0, 1].   latents: (B, C, h, w) from which it was decoded; the pixels of a pipeline without latents.
    calls: of the U-Net.   seconds: by part, ``unet``, ``encode``, ``decode``, ``mask`` and ``total``.
    macs, dense_macs: multiply-accumulates of U-Net and autoencoder, as executed, and as a whole dense run from the first step to the
    picture needs.
    """

    image: torch.Tensor
    latents: torch.Tensor
    calls: int
    seconds: dict
    macs: int
    dense_macs: int


@dataclasses.dataclass(frozen=True)
class Edited(Picture):
    """An edited picture. It becomes the session's own with ``session.commit()``.

    mask: bool (B, h, w) at the latents' resolution, the positions that the edit may change.
    mask_source: ``user``, ``difference`` (of two pictures) or ``prompt`` (of latents with the old and the new prompt).
    effect: the Effect of the sparse U-Net steps, and of dense ones behind them.   vae_effect: that of the decoder; None without one.
    steps: (number of the step, ``dense`` or ``sparse``, macs, dense_macs) of each U-Net call.
    change: list of PromptChange, one a picture; None where the prompt was not compared.
    """

    mask: torch.Tensor
    mask_source: str
    effect: Effect
    vae_effect: Effect | None
    steps: list
    change: list | None = None


def unchanged(picture, wish):
    """The Edited of a wish that changes nothing: the very picture, no call, an empty mask."""
    latents = picture.latents
    mask = torch.zeros(len(latents), *latents.shape[2:], dtype=torch.bool, device=latents.device)
    nothing = ({"total": 0.0}, 0, picture.dense_macs, mask, wish.source, Effect(), None, [], wish.changes)
    return Edited(picture.image, latents, 0, *nothing)


def picture_of(edited):
    """An Edited without what the edit alone knows: the Picture that the next edit builds on."""
    return Picture(*(getattr(edited, field.name) for field in dataclasses.fields(Picture)))
