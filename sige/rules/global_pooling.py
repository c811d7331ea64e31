"""Sums and means over all positions, as in squeeze-and-excitation: exact ones of the edited map, at the cost of the edited rows."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.kernels import backends
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.rules.remembered_sums import followed


def over_all_positions(x, dims):
    """Whether ``dims`` are just those of the positions of an active tensor, whose sums an edit can follow."""
    places = {d for d, axis in enumerate(x.axes) if axis in ("h", "w", "p")}
    return x.settled and x.axes[0] == "b" and {d % x.dim() for d in dims} == places and x.is_floating_point()


def pooled(forward, x, keepdim, mean):
    """The sum of an active tensor over its positions, or their mean: a plain tensor (B, features...), with axes of size one in the
    positions' places where ``keepdim``."""
    active, key = x.active, forward.key("sums")
    (sums,) = followed(forward, key, "pooled", active, {"summed": x.rows}, lambda rows: _summed(active, rows))
    found = sums / (active.height * active.width) if mean else sums
    if keepdim:
        found = found.view([size if axis in ("b", "f") else 1 for size, axis in zip(x.shape, x.axes)])
    return found.to(x.dtype)


def _summed(active, rows):
    """Rows (n, features...) of a set summed over each sample's, in the widest dtype: a tuple of one tensor (B, features...)."""
    wide = backends.widest(rows.device.type)
    return (torch.stack([rows[slice(*span)].sum(0, dtype=wide) for span in active.segments]),)


@rule(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(forward, func, input, output_size):
    whole = (
        output_size in (1, (1, 1), [1, 1]) and isinstance(input, ActiveTensor) and input.axes == ("b", "f", "h", "w")
    )
    if not whole or forward.is_dense_here() or not over_all_positions(input, (2, 3)):
        return otherwise(forward, func, (input, output_size), {})
    return pooled(forward, input, True, True)
