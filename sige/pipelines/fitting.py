"""Masks and pictures as users give them, brought to what a pipeline run needs: on the CPU, wherever they were."""

import torch

from sige.errors import ChangedInputError, MaskError
from sige.masks import check_mask, reduce_max

_EPS = 0.01  # SIGE's, for pictures in [-1, 1]: less than two steps of 8 bits is no edit


def fit_mask(mask, batch, latent_size, picture_size):
    """A user's mask, (H, W) or (B, H, W) at the resolution of the latents or finer by a whole factor, as (latents', picture's).

    Returns bool (B, h, w) at ``latent_size`` and bool (B, H, W) at ``picture_size``. A latent is masked where any pixel of it is.
    """
    mask = check_mask(mask).cpu()
    factors = {side / own for side, own in zip(mask.shape[1:], latent_size, strict=True)}
    if len(factors) != 1 or not factors.pop().is_integer():
        raise MaskError(
            f"the edit mask is {tuple(mask.shape[1:])}, the latents are {tuple(latent_size)} and the picture {tuple(picture_size)}: "
            "give it at one of these resolutions, or finer than the latents by a whole factor"
        )
    if mask.shape[0] not in (1, batch):
        raise MaskError(
            f"the edit mask has batch {mask.shape[0]}, the recording {batch}: give one mask, or one a picture"
        )
    mask = mask.expand(batch, -1, -1)
    return reduce_max(mask, *latent_size), reduce_max(mask, *picture_size)


def fit_image(image, batch, size=None):
    """A picture as float32 (B, 3, H, W) in [0, 1].

    image: tensor (3, H, W) or (B, 3, H, W) in [0, 1], array (H, W, 3), or PIL image.
    size: (H, W) that it must have. ChangedInputError names what does not fit.
    """
    if not isinstance(image, torch.Tensor):
        from diffusers.image_processor import VaeImageProcessor

        try:
            image = VaeImageProcessor(do_resize=False, do_normalize=False).preprocess(image)
        except (TypeError, ValueError) as error:
            raise ChangedInputError(
                f"the image is {type(image).__name__}: give a tensor (B, 3, H, W) in [0, 1] or a PIL image"
            ) from error
    image = image[None] if image.dim() == 3 else image
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[0] not in (1, batch):
        raise ChangedInputError(
            f"the image has shape {tuple(image.shape)}: give (3, H, W) or (B, 3, H, W), one picture or {batch}"
        )
    if size is not None and tuple(image.shape[2:]) != tuple(size):
        raise ChangedInputError(
            f"the image is {tuple(image.shape[2:])}, the recorded picture {tuple(size)}: give it at that size"
        )
    image = image.float().cpu()
    if not torch.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ChangedInputError(
            f"the image has values from {image.min().item():.3g} to {image.max().item():.3g}: give values from 0 to 1"
        )
    return image.expand(batch, -1, -1, -1)


def changed_pixels(old, new):
    """Where two pictures (B, 3, H, W) in [0, 1] differ visibly: bool (B, H, W)."""
    return (2 * (new - old)).abs().amax(1) > _EPS
