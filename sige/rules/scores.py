"""What is known of attention on its way from one product to the other, and of the products' operands."""

import dataclasses

import torch

from sige.active_tensor import ActiveTensor
from sige.delayed import Delayed
from sige.rules.features import unsqueeze
from sige.rules.folding import Heads


@dataclasses.dataclass
class Scores:
    """Products of queries and keys on the way to a softmax, or behind it.

    query: active tensor with axes (b, heads, p, f).   key: the like, or a plain tensor (B, heads, keys, width).
    scale, mask: as in ``scaled_dot_product_attention``.   soft: whether the softmax has been.
    turned: whether keys stand before queries.   layout: ``heads`` (B, heads, ., .), ``folded`` (B * heads, ., .), ``single`` (B, ., .).
    paid: of scores made by one product, filled once that is counted: a model that goes on with them twice multiplies once.
    """

    query: ActiveTensor
    key: torch.Tensor
    scale: float = 1.0
    mask: torch.Tensor | None = None
    soft: bool = False
    turned: bool = False
    layout: str = "heads"
    paid: list = dataclasses.field(default_factory=list)

    @property
    def sides(self):
        """The last two sides."""
        sides = (self.query.shape[2], self.key.shape[2])
        return sides[::-1] if self.turned else sides


def what_of(x, kind):
    """What is known of a tensor that may be a delayed one of a ``kind``; None otherwise."""
    return x.what if isinstance(x, Delayed) and isinstance(x.what, kind) else None


def cast_type(x):
    """The type in which a product takes ``x``: autocast's where that is on."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype


def is_autocast(x):
    """Whether autocast is on for the device of ``x``."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def operand(forward, x):
    """A product's operand as (B, heads, ., .) and its layout; (None, None) where it is none with positions."""
    heads = what_of(x, Heads)
    if heads:
        return heads.inner, "folded"
    if not isinstance(x, ActiveTensor) or not x.settled or sorted(x.axes[-2:]) != ["f", "p"] or x.axes[0] != "b":
        return None, None
    if x.dim() == 3:
        return unsqueeze(forward, torch.unsqueeze, x, 1), "single"
    return (x, "heads") if x.dim() == 4 and x.axes[1] == "f" else (None, None)


def partner(forward, x, layout, query):
    """The other operand in the layout of the first, as (B, heads, ., .); None where it has another."""
    if isinstance(x, (Delayed, ActiveTensor)):
        found, own = operand(forward, x)
        return found if own == layout and found.shape[:2] == query.shape[:2] else None
    dims = 4 if layout == "heads" else 3
    if x.dim() != dims or x.shape[0] != (query.shape[0] * query.shape[1] if layout == "folded" else query.shape[0]):
        return None
    if layout == "folded":
        return x.unflatten(0, tuple(query.shape[:2]))
    return x.unsqueeze(1) if layout == "single" else x if x.shape[1] == query.shape[1] else None


def mask_of(scores, added):
    """What is added to scores as attention's mask (B or 1, heads or 1, queries or 1, keys); None where it cannot be one."""
    sides = (*scores.query.shape[:3], scores.key.shape[2])
    alike = type(added) in (torch.Tensor, torch.nn.Parameter) and added.is_floating_point()
    if not alike or added.dtype != scores.query.dtype and not is_autocast(added):
        return None
    if scores.layout != "heads":
        if added.dim() != 3:
            return None
        each = scores.layout == "folded" and added.shape[0] != 1
        added = added.unflatten(0, sides[:2]) if each and added.shape[0] == sides[0] * sides[1] else added.unsqueeze(1)
    added = added.reshape((1,) * (4 - added.dim()) + tuple(added.shape)) if added.dim() < 4 else added
    fits = added.dim() == 4 and added.shape[3] == sides[3] and all(a in (1, b) for a, b in zip(added.shape, sides))
    return added if fits else None
