"""Edit masks: from a pair of images, dilated, and brought to other resolutions.

Masks are boolean, (H, W) or (B, H, W), True where the input changed.
"""

import torch
import torch.nn.functional as F

from sige.errors import MaskError


def difference_mask(original, edited, eps=0.01):
    """Where two images (C, H, W) differ by more than ``eps`` in any channel. Returns bool (H, W).

    SIGE uses eps 0.01 for its church edits, on images scaled to [-1, 1].
    """
    if original.shape != edited.shape or original.dim() != 3:
        raise MaskError(
            f"images of shape {tuple(original.shape)} and {tuple(edited.shape)}: give two of one shape (C, H, W)"
        )
    return (original - edited).abs().amax(0) > eps


def dilate_cross(mask, radius):
    """Grow a mask (..., H, W) by ``radius`` up, down, left and right, each from the given mask: a plus, as SIGE dilates."""
    grown = mask.clone()
    for step in range(1, radius + 1):
        grown[..., step:, :] |= mask[..., :-step, :]
        grown[..., :-step, :] |= mask[..., step:, :]
        grown[..., :, step:] |= mask[..., :, :-step]
        grown[..., :, :-step] |= mask[..., :, step:]
    return grown


def dilate_box(mask, radius):
    """Grow a mask (B, H, W) by a square of side ``2*radius + 1``."""
    if radius == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), 2 * radius + 1, 1, radius)[:, 0] > 0


def reduce_max(mask, height, width):
    """Mask (B, H, W) at another resolution: a cell is True where any pixel it covers is."""
    if mask.shape[1] <= height and mask.shape[2] <= width:
        return F.interpolate(mask[:, None].float(), (height, width), mode="nearest")[:, 0] > 0
    return F.adaptive_max_pool2d(mask[:, None].float(), (height, width))[:, 0] > 0


def in_tiles(mask, tile):
    """Bool grid (B, ceil(H/h), ceil(W/w)): the tiles of a mask (B, H, W) that hold a True position.

    tile: (h, w), or the side of squares.
    """
    return F.max_pool2d(mask[:, None].float(), tile, tile, ceil_mode=True)[:, 0] > 0


def halve_bilinear(values):
    """Float mask (B, H, W) at half the resolution by bilinear interpolation (the mean of 2x2 on even sides)."""
    size = ((values.shape[1] + 1) // 2, (values.shape[2] + 1) // 2)
    return F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def binarize(values, threshold):
    """SIGE's threshold: a value counts when above ``min(threshold, max - 0.001)``, so that a small edit survives halving.

    Unlike SIGE's, an empty mask stays empty.
    """
    peak = values.amax((1, 2), keepdim=True)
    return (values > (peak - 1e-3).clamp(max=threshold)) & (peak > 0) & (values > 0)


def check_mask(mask):
    """Return a mask as bool (B, H, W); MaskError names what is wrong with anything else."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise MaskError(f"the edit mask is {kind}: give a torch.bool tensor, True where the input changed")
    if mask.dim() not in (2, 3):
        raise MaskError(f"the edit mask has shape {tuple(mask.shape)}: give (H, W) or (B, H, W)")
    return mask if mask.dim() == 3 else mask[None]
