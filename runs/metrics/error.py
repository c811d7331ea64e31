"""Error of one step against the dense float32 model on the same edited input, and the gate on it."""

import math

import torch

from sige.analysis.image_errors import max_abs_error, psnr, relative_l2, relative_l2_in_mask
from sige.runs.metrics import Reading

ORDER = 20


def at_output(mask, output):
    """The mask (H, W) at the resolution of an output (B, C, h, w): a cell counts where any pixel that it covers does."""
    from sige import masks

    size = tuple(output.shape[-2:])
    return mask if tuple(mask.shape) == size else masks.reduce_max(mask[None], *size)[0]


def collect(bench, gate):
    """Rows ``error_max``, ``error_rel_l2``, ``error_rel_l2_in_mask``, ``psnr`` (its peak is the range of the dense
    output) and ``gate``: 1 where each error named in ``gate`` is at most its budget. None for the dense reference."""
    mask = at_output(bench.mask, bench.reference)
    peak = (bench.reference.max() - bench.reference.min()).item()
    for method in bench.runners:
        output = bench.probes[method].output.float()
        if method == bench.reference_method:
            continue
        if not torch.isfinite(output).all():
            yield bench.set_gate(Reading(method, "gate", 0.0, "bool", reason="the output holds NaN or infinite values"))
            continue
        errors = {
            "error_max": max_abs_error(output, bench.reference),
            "error_rel_l2": relative_l2(output, bench.reference),
        }
        if mask.any():
            errors["error_rel_l2_in_mask"] = relative_l2_in_mask(output, bench.reference, mask)
        for metric, value in errors.items():
            yield Reading(method, metric, value, "1", baseline="dense")
        decibel = psnr(output, bench.reference, data_range=peak)
        if math.isfinite(decibel):  # an output equal to the reference has none
            yield Reading(method, "psnr", decibel, "dB", baseline="dense", reason="peak: range of the dense output")
        broken = [
            f"{name} {errors[name]:.3g} is above the budget {limit:g}"
            for name, limit in gate.items()
            if errors.get(name, 0) > limit
        ]
        yield bench.set_gate(Reading(method, "gate", float(not broken), "bool", reason="; ".join(broken)))
