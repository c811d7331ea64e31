"""Patches: the model's input map becomes one of tokens that each hold a patch, and such tokens become a finer map, whose active rows
are the children of the active tokens."""

import math

import torch
import torch.nn.functional as F

from sige.active_set import ActiveSet
from sige.active_tensor import ActiveTensor
from sige.rules.fallback import otherwise
from sige.rules.registry import rule


def children(active, tall, wide):
    """The set of a map ``tall`` x ``wide`` times finer that covers ``active``; token after token unless full. Kept with ``active``."""
    known = active.__dict__.setdefault("_children", {})
    if (tall, wide) not in known:
        if active._host is not None:
            known[tall, wide] = children(active._host, tall, wide).on(active.device)
        else:
            known[tall, wide] = _children(active, tall, wide)
    return known[tall, wide]


def _children(active, tall, wide):
    height, width = active.height * tall, active.width * wide
    kind = f"{tall}x{wide} patches, {active.kind}"
    if active.full:
        return ActiveSet.everything(active.batch, height, width, active.device, kind=kind)
    places = active.positions
    row, column = (
        places // active.width * tall,
        places % active.width * wide,
    )  # rows of all samples, one above the other
    down, right = (torch.arange(side, device=places.device) for side in (tall, wide))
    index = (row[:, None, None] + down[:, None]) * width + column[:, None, None] + right
    segments = [(start * tall * wide, stop * tall * wide) for start, stop in active.segments]
    return ActiveSet(
        active.batch,
        height,
        width,
        index.flatten(),
        (tall, wide),
        places,
        segments,
        kind=kind,
    )


def unfold_patches(x, target):
    """View ``x`` as shape ``target`` (list of int) in which ``h`` and ``w`` each take in the feature behind them. None otherwise."""
    axes, sizes = x.axes, list(x.shape)
    if "h" not in axes or not x.settled:
        return None
    new_axes, features, patch, i, j = [], [], {}, 0, 0
    while i < len(axes) and j < len(target):
        axis = axes[i]
        if axis in "hw" and i + 1 < len(axes) and axes[i + 1] == "f" and target[j] == sizes[i] * sizes[i + 1]:
            patch[axis] = axes[:i].count("f"), sizes[i + 1]
            i += 2
        elif axis != "f" and target[j] == sizes[i]:
            i += 1
        elif axis == "f":
            end = next((k for k in range(i, len(axes)) if axes[k] != "f"), len(axes))
            if math.prod(sizes[i:end]) != target[j]:
                return None
            features.append(target[j])
            i = end
        else:
            return None
        new_axes.append(axis)
        j += 1
    if i < len(axes) or j < len(target) or set(patch) != {"h", "w"}:
        return None
    (down, tall), (right, wide) = patch["h"], patch["w"]
    rest = [k for k in range(x.rows.dim() - 1) if k not in (down, right)]
    rows = x.rows.permute(0, 1 + down, 1 + right, *(1 + k for k in rest))
    active = x.active
    if active.full:  # a full set's rows lie in the order of its map
        grid = rows.reshape(active.batch, active.height, active.width, tall, wide, -1)
        rows = grid.permute(0, 1, 3, 2, 4, 5)
    return ActiveTensor(rows.reshape(-1, *features), children(active, tall, wide), tuple(new_axes))


def cut_into_patches(forward, x, shape):
    """An input map (B, C, H, W) viewed as (B, C, rows, tall, columns, wide): its active patches. None for any other view, or where
    that level runs dense."""
    target = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    if x.dim() != 4 or len(target) != 6 or not all(isinstance(side, int) for side in target):
        return None
    batch, _, rows, tall, columns, wide = x.view(target).shape if -1 in target else target
    level = (rows, columns)
    cut = target[1] in (-1, x.shape[1]) and (rows * tall, columns * wide) == tuple(x.shape[2:]) and batch == x.shape[0]
    if not cut or forward.is_of_other_samples(x) or forward.is_dense_here() or not forward.is_sparse_level(*level):
        return None
    active = forward.plan.level_set(*level)
    grid = x.view(batch, -1, rows, tall, columns, wide).permute(0, 2, 4, 1, 3, 5)
    if active.full:
        values = grid.reshape(-1, *grid.shape[3:])
    else:
        places = active.positions
        values = grid[places // (rows * columns), places // columns % rows, places % columns]
    return ActiveTensor(values, active, ("b", "f", "h", "f", "w", "f"))


@rule(F.pixel_shuffle)
def pixel_shuffle(forward, func, x, factor):
    """(B, C*r*r, H, W) -> (B, C, H*r, W*r)."""
    if not isinstance(x, ActiveTensor) or x.axes != ("b", "f", "h", "w") or not x.settled:
        return otherwise(forward, func, (x, factor), {})
    channels = x.shape[1] // factor**2
    rows = x.rows.view(-1, channels, factor, factor)
    tokens = ActiveTensor(rows, x.active, ("b", "f", "h", "f", "w", "f"))
    return unfold_patches(tokens, [x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor])
