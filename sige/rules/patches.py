"""Patches: a map becomes one of tokens that each hold a patch of it, and such tokens become a finer map, whose active rows are the
children of the active tokens."""

import dataclasses
import math

import torch
import torch.nn.functional as F

from sige.active_set import ActiveSet
from sige.active_tensor import ActiveTensor, full_view, rows_of_map
from sige.kernels import ops
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.rules.resampling import source_of

_IMAGE = ("b", "f", "h", "w")


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
    """View ``x`` as shape ``target`` (list of int) in which ``h``, ``w`` or both take in the feature behind them. None otherwise."""
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
    if i < len(axes) or j < len(target) or not patch:
        return None
    (down, tall), (right, wide) = (patch.get(axis, (None, 1)) for axis in "hw")
    inside = [k for k in (down, right) if k is not None]
    rest = [k for k in range(x.rows.dim() - 1) if k not in inside]
    rows = x.rows.permute(0, *(1 + k for k in (*inside, *rest)))
    active = x.active
    if active.full:  # a full set's rows lie in the order of its map
        grid = rows.reshape(active.batch, active.height, active.width, tall, wide, -1)
        rows = grid.permute(0, 1, 3, 2, 4, 5)
    return ActiveTensor(rows.reshape(-1, *features), children(active, tall, wide), tuple(new_axes))


@dataclasses.dataclass(frozen=True)
class Patches:
    """Geometry of a map cut into patches of (tall, wide): ``out_size`` (rows, columns) of them."""

    out_size: tuple[int, int]
    tall: int
    wide: int

    def reads(self, chosen):
        """(n, tall * wide) int64: the map's rows in each patch of ``chosen``."""
        places = chosen.content.positions
        line, column = places // chosen.width, places % chosen.width  # lines of all samples, one above the other
        down, right = (torch.arange(side, device=places.device) for side in (self.tall, self.wide))
        index = (line[:, None, None] * self.tall + down[:, None]) * (chosen.width * self.wide)
        return (index + column[:, None, None] * self.wide + right).flatten(1).to(chosen.device)


def cut_into_patches(forward, x, shape):
    """A map (B, C, H, W) viewed as (B, C, rows, tall, columns, wide): its active patches. ``x`` is active, or an input of the model.
    None for any other view, or where that level runs dense."""
    target = list(shape)
    if len(target) != 6 or x.dim() != 4 or not all(isinstance(side, int) for side in target):
        return None
    if -1 in target:
        target[target.index(-1)] = x.shape.numel() // max(1, -math.prod(target))
    batch, channels, rows, tall, columns, wide = target
    if [batch, channels, rows * tall, columns * wide] != list(x.shape) or forward.is_of_other_samples(x):
        return None
    active = isinstance(x, ActiveTensor)
    if (
        active
        and (x.axes != _IMAGE or not x.settled)
        or forward.is_dense_here()
        or not forward.is_sparse_level(rows, columns)
    ):
        return None
    level, geometry = forward.plan.level_set(rows, columns), Patches((rows, columns), tall, wide)
    if active:
        source = source_of(forward, x, "patches")
        image = full_view(source, x.active, _IMAGE) if level.full else None
    else:
        source, image = None, x
    index = forward.plan.reads_of(level, geometry)
    if level.full:
        values = image.reshape(target).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, tall, wide)
    else:
        found = rows_of_map(x, index.flatten()) if source is None else ops.gather_rows(source, index.flatten())
        values = found.view(-1, tall, wide, channels).permute(0, 3, 1, 2)
    return ActiveTensor(values.to(x.dtype), level, ("b", "f", "h", "f", "w", "f"))


@rule(F.pixel_unshuffle)
def pixel_unshuffle(forward, func, x, factor):
    """(B, C, H*r, W*r) -> (B, C*r*r, H, W)."""
    known = isinstance(x, ActiveTensor) or forward.is_input_map(x)
    cut = None
    if known and x.dim() == 4 and not (x.shape[2] % factor or x.shape[3] % factor):
        height, width = x.shape[2] // factor, x.shape[3] // factor
        cut = cut_into_patches(forward, x, (*x.shape[:2], height, factor, width, factor))
    if cut is None:
        return otherwise(forward, func, (x, factor), {})
    return ActiveTensor(cut.rows.reshape(len(cut.rows), -1), cut.active, _IMAGE)


@rule(F.pixel_shuffle)
def pixel_shuffle(forward, func, x, factor):
    """(B, C*r*r, H, W) -> (B, C, H*r, W*r)."""
    if not isinstance(x, ActiveTensor) or x.axes != ("b", "f", "h", "w") or not x.settled:
        return otherwise(forward, func, (x, factor), {})
    channels = x.shape[1] // factor**2
    rows = x.rows.view(-1, channels, factor, factor)
    tokens = ActiveTensor(rows, x.active, ("b", "f", "h", "f", "w", "f"))
    return unfold_patches(tokens, [x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor])
