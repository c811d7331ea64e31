"""What a session hands out of a forward: plain tensors, and which positions of them were computed."""

import torch
from torch.utils._pytree import tree_map

from sige.active_tensor import ActiveTensor, full_view


def copied(tree):
    """A nest of values with every tensor in it cloned."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def plain(forward, leaf, recorded):
    """An output leaf as the caller gets it: a plain tensor. Positions that are not active hold the recording, bit for bit."""
    if not isinstance(leaf, ActiveTensor):
        return leaf
    tokens = leaf.axes == ("b", "p", "f")
    if not leaf.settled or not tokens and leaf.axes != ("b", "f", "h", "w"):
        return forward.densify(leaf, "output").clone()
    if leaf.active.full:
        return full_view(leaf.rows, leaf.active, leaf.axes).clone(memory_format=torch.contiguous_format)
    output = recorded.clone()
    if tokens:
        output.flatten(0, 1)[leaf.active.positions] = leaf.rows
        return output
    places, area = leaf.active.positions, leaf.active.height * leaf.active.width
    output.flatten(2)[places // area, :, places % area] = leaf.rows
    return output


def active_map(leaves, mask):
    """What was recomputed, at the resolution of the first output map, as an ActiveSet; everything, as a bool map, where that came out
    dense."""
    for leaf in leaves:
        if isinstance(leaf, ActiveTensor) and leaf.settled:
            return leaf.active
        if isinstance(leaf, torch.Tensor) and leaf.dim() == 4:
            return torch.ones(leaf.shape[0], *leaf.shape[2:], dtype=torch.bool, device=mask.device)
    return torch.ones_like(mask)
