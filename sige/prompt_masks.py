"""The mask of a changed prompt: where the latents of two runs from one start noise drift apart, as FISEdit finds it.

Latents of the first steps, with the old and with the new prompt, become one map of differences (uint8), Otsu's threshold splits
it in two, an opening removes specks. Thresholds, histogram equalisation and opening follow OpenCV to the bit: they turn the
published difference maps into the published masks.

    mask = prompt_mask(new, old)                        # latents of the same steps; bool (B, h, w)
    mask = prompt_mask(new, old, steps=(5, 10))         # of the latents given, those after steps 5 to 10
    mask = prompt_mask(new, old, threshold=192, equalise=True)   # about 256 - 192 of 256 positions, whatever the map: sweeps
"""

import torch

from sige.errors import MaskError

_LEVELS = 256
_NOTHING = torch.finfo(torch.float32).eps  # a class that holds less than this share of the positions counts as empty


def prompt_mask(new, old, steps=None, threshold=None, equalise=False, aligned=False):
    """Where a changed prompt changes the picture: bool (B, h, w) on the latents' device.

    new, old: sequences of latents (B, C, h, w), one a step from the first on, with the new and with the old prompt.
    steps: (t1, t2) compares those after steps t1 to t2, counted from 1; None: all that are given.
    threshold, equalise, aligned: see :func:`mask_of_map`.
    Latents that do not differ give an empty mask. Source: FISEdit, section "mask generation", and its released code.
    """
    if steps is not None:
        new, old = latents_of_steps(new, steps), latents_of_steps(old, steps)
    return mask_of_map(difference_map(new, old), threshold, equalise, aligned)


def mask_of_map(differences, threshold=None, equalise=False, aligned=False):
    """Mask (..., h, w) of a map of differences, uint8 (h, w) or (B, h, w), each sample by its own threshold.

    threshold: positions above it are masked; None is Otsu's choice. equalise: spread the map's values evenly first, which makes a
    threshold stand for an area. aligned: see :func:`opened`.
    """
    _check_map(differences)
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int)):
        raise MaskError(f"the mask's threshold is {threshold!r}: give a whole number from 0 to 255, or None for Otsu's")
    if threshold is not None and not 0 <= threshold < _LEVELS:
        raise MaskError(f"the mask's threshold is {threshold}: give a whole number from 0 to 255, or None for Otsu's")
    maps = differences if differences.dim() == 3 else differences[None]
    masks = []
    for single in maps:
        single = equalised(single) if equalise else single
        masks.append(single > (otsu_threshold(single) if threshold is None else threshold))
    masks = opened(torch.stack(masks), aligned)
    return masks if differences.dim() == 3 else masks[0]


def mask_of_area(differences, area, aligned=False):
    """The mask (..., h, w), among those of all thresholds on the equalised map, whose share of positions is nearest to ``area``.

    For sweeps over edit sizes: a given size on a given map, each sample of a batch by itself. area: in (0, 1].
    """
    _check_map(differences)
    if not 0 < area <= 1:
        raise MaskError(f"the wanted area is {area!r}: give a share of the picture above 0 and at most 1")
    maps = differences if differences.dim() == 3 else differences[None]
    thresholds = torch.arange(_LEVELS - 1, -1, -1, device=maps.device)[:, None, None]
    chosen = []
    for single in maps:
        masks = opened(equalised(single)[None] > thresholds, aligned)
        error = (masks.double().mean((1, 2)) - area).abs()
        chosen.append(masks[int(error.argmin())])
    masks = torch.stack(chosen)
    return masks if differences.dim() == 3 else masks[0]


def latents_of_steps(latents, steps):
    """Those after steps t1 to t2, counted from 1, of a sequence that holds the latents after each step from the first on."""
    try:
        first, last = steps
    except (TypeError, ValueError):
        raise MaskError(f"the mask's steps are {steps!r}: give a pair such as (1, 10)") from None
    if not 1 <= first <= last:
        raise MaskError(f"the mask's steps are {tuple(steps)}: give (t1, t2) with 1 <= t1 <= t2")
    if last > len(latents):
        raise MaskError(f"the mask's steps are {tuple(steps)}, but latents of {len(latents)} steps are there")
    return latents[first - 1 : last]


def difference_map(new, old):
    """How far two runs lie apart, position by position: uint8 (B, h, w), 0 to 255 within each sample.

    new, old: sequences of latents (B, C, h, w) of the same steps. Absolute differences are summed over channels and scaled to
    [0, 1] for each step, so that each step has the same say; the sum over steps is scaled again and cut to whole numbers.
    Computed in float64 on the CPU, so that a mask does not depend on the device.
    """
    _check_latents(new, old)
    total = 0
    for x, y in zip(new, old, strict=True):
        apart = (x.detach().cpu().double() - y.detach().cpu().double()).abs().sum(1)
        if not bool(torch.isfinite(apart).all()):
            raise MaskError("the latents to compare hold NaN or infinity: a run that diverged has no mask")
        total = total + _stretched(apart)
    return (_stretched(total) * 255).to(torch.uint8).to(new[0].device)


def otsu_threshold(differences):
    """Otsu's threshold of a map uint8 (h, w): the value v that, splitting positions into <= v and > v, puts the two means farthest
    apart, weighted by the sizes. 0 for a map of one value.

    The smallest such v by OpenCV's arithmetic: double precision, sums taken from 0 upwards, classes under 1.2e-7 left out.
    """
    counts = _histogram(differences)
    share = 1.0 / sum(counts)
    mean = sum(value * count for value, count in enumerate(counts)) * share
    below = lower_mean = best = 0.0
    threshold = 0
    for value, count in enumerate(counts):
        weight = count * share
        lower_mean *= below  # the sum again, until the next value is in
        below += weight
        above = 1.0 - below
        if min(below, above) < _NOTHING or max(below, above) > 1.0 - _NOTHING:
            continue
        lower_mean = (lower_mean + value * weight) / below
        upper_mean = (mean - below * lower_mean) / above
        spread = below * above * (lower_mean - upper_mean) * (lower_mean - upper_mean)
        if spread > best:
            best, threshold = spread, value
    return threshold


def equalised(differences):
    """A map uint8 (h, w) with its histogram spread evenly over 0 to 255, as OpenCV does it; a map of one value stays."""
    counts = torch.tensor(_histogram(differences))
    first = int(counts.nonzero()[0])
    rest = int(counts.sum() - counts[first])
    if rest == 0:
        return differences.clone()
    scale = torch.tensor(255.0) / torch.tensor(float(rest))
    counts[first] = 0
    table = (counts.cumsum(0).float() * scale).round().clamp(0, 255).to(torch.uint8)
    return table.to(differences.device)[differences.long()]


def opened(mask, aligned=False):
    """Erosion, then dilation of a mask (..., h, w) by 2x2: what is thinner than two positions vanishes.

    A 2x2 square has no middle. OpenCV lets a position look up and left in both passes, so its result, and every published mask,
    lies one position lower and further right than what it opens; positions beyond the border count as masked in the erosion.
    ``aligned`` dilates down and right instead, which brings the mask back to its place and makes it a subset of what came in.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.dim() < 2:
        raise MaskError("opened() takes a torch.bool mask of shape (..., H, W)")
    eroded = mask.clone()
    eroded[..., 1:, :] &= mask[..., :-1, :]
    eroded[..., :, 1:] &= mask[..., :, :-1]
    eroded[..., 1:, 1:] &= mask[..., :-1, :-1]
    grown = eroded.clone()
    if aligned:
        grown[..., :-1, :] |= eroded[..., 1:, :]
        grown[..., :, :-1] |= eroded[..., :, 1:]
        grown[..., :-1, :-1] |= eroded[..., 1:, 1:]
        return grown
    grown[..., 1:, :] |= eroded[..., :-1, :]
    grown[..., :, 1:] |= eroded[..., :, :-1]
    grown[..., 1:, 1:] |= eroded[..., :-1, :-1]
    return grown


def _stretched(values):
    """Values (B, h, w) scaled to [0, 1] within each sample; all 0 where a sample is constant."""
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (values - low) / torch.where(span > 0, span, 1), 0)


def _histogram(differences):
    _check_map(differences)
    if differences.dim() != 2:
        raise MaskError(f"the map of differences has shape {tuple(differences.shape)}: give one map (H, W) at a time")
    return torch.bincount(differences.flatten().long(), minlength=_LEVELS).tolist()


def _check_map(differences):
    if not isinstance(differences, torch.Tensor) or differences.dtype != torch.uint8:
        kind = differences.dtype if isinstance(differences, torch.Tensor) else type(differences).__name__
        raise MaskError(f"the map of differences is {kind}: give torch.uint8, as difference_map() makes it")
    if differences.dim() not in (2, 3) or differences.numel() == 0:
        raise MaskError(f"the map of differences has shape {tuple(differences.shape)}: give (H, W) or (B, H, W)")


def _check_latents(new, old):
    if len(new) != len(old) or not len(new):
        raise MaskError(f"latents of {len(new)} steps and of {len(old)}: give as many of each, one step at least")
    for x, y in zip(new, old, strict=True):
        if x.dim() != 4 or x.shape != y.shape or x.shape != new[0].shape:
            raise MaskError(
                f"latents of shape {tuple(x.shape)} and {tuple(y.shape)}: give two of one shape (B, C, H, W) for each step"
            )
        if x.is_meta or y.is_meta:
            raise MaskError(
                "latents on the meta device have no values to compare: give a mask instead of a prompt alone"
            )
