"""How far one output is from another: maximum absolute error, relative L2, PSNR, and relative L2 within a mask.

Tensors in, floats out; all sums run in float64. ``reference`` is what ``output`` is held against, e.g. the dense
model on the edited input.
"""

import math

import torch
from torch import Tensor


def max_abs_error(output: Tensor, reference: Tensor) -> float:
    """Return max |output - reference|, in the unit of the tensors (equal shapes)."""
    output, reference = _pair(output, reference)
    return float((output - reference).abs().max())


def relative_l2(output: Tensor, reference: Tensor) -> float:
    """Return ||output - reference|| / ||reference|| over all elements; 0 if equal, inf against a zero reference."""
    output, reference = _pair(output, reference)
    return _relative(output - reference, reference)


def relative_l2_in_mask(output: Tensor, reference: Tensor, mask: Tensor) -> float:
    """Return the relative L2 over the positions of ``mask``: both norms run over the masked positions only.

    ``output`` and ``reference``: (B, C, H, W) or (C, H, W). ``mask``: bool, (H, W) for all samples or (B, H, W),
    at the resolution of the tensors, True where counted; every channel of a masked position counts.
    """
    output, reference = _pair(output, reference)
    if output.dim() not in (3, 4):
        raise ValueError(
            f"an error within a mask needs maps (B, C, H, W) or (C, H, W), got shape {tuple(output.shape)}."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, got {mask.dtype}.")
    maps = output.shape[:-3] + output.shape[-2:]
    if tuple(mask.shape) not in {tuple(output.shape[-2:]), tuple(maps)}:
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}, expected {tuple(output.shape[-2:])} or {tuple(maps)}."
        )
    if not bool(mask.any()):
        raise ValueError("the mask is empty: there is no position to measure an error at.")
    where = mask.to(output.device).unsqueeze(-3).expand(output.shape)
    return _relative((output - reference)[where], reference[where])


def psnr(output: Tensor, reference: Tensor, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error); inf if equal.

    ``data_range`` is the distance between the smallest and largest possible value: 2 for images in [-1, 1], 255 for
    8-bit. It has no default on purpose: a PSNR without its range means nothing.
    """
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"data_range must be a finite number above 0, got {data_range}.")
    output, reference = _pair(output, reference)
    mse = float((output - reference).square().mean())
    return math.inf if mse == 0 else 10.0 * math.log10(data_range**2 / mse)


def _pair(output: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape != reference.shape:
        raise ValueError(
            f"output has shape {tuple(output.shape)}, reference {tuple(reference.shape)}; they must be equal."
        )
    if output.numel() == 0:
        raise ValueError("there is nothing to compare: the tensors are empty.")
    pair = output.detach().double(), reference.detach().to(output.device).double()
    for name, tensor in zip(("output", "reference"), pair, strict=True):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the {name} holds NaN or infinite values.")
    return pair


def _relative(difference: Tensor, reference: Tensor) -> float:
    error, size = float(torch.linalg.vector_norm(difference)), float(torch.linalg.vector_norm(reference))
    if error == 0:
        return 0.0
    return error / size if size > 0 else math.inf
