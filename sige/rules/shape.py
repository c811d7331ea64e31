"""Views, transposes, splits and concatenation: bookkeeping on the axes, rows untouched or regrouped by feature."""

import math

import torch

from sige.active_tensor import ActiveTensor
from sige.rules import patches, sequence
from sige.rules.fallback import otherwise
from sige.rules.folding import fold
from sige.rules.registry import rule

T = torch.Tensor


def _regroup(x, target):
    """Axes and feature sizes of ``x`` viewed as shape ``target``; None when positions would mix with features."""
    sizes, axes = list(x.shape), list(x.axes)
    new_axes, features, i, j = [], [], 0, 0
    while i < len(axes) and j < len(target):
        axis = axes[i]
        if axis == "f":
            end = i
            while end < len(axes) and axes[end] == "f":
                end += 1
            whole, taken = math.prod(sizes[i:end]), 1
            while j < len(target) and taken < whole:
                taken *= target[j]
                features.append(target[j])
                new_axes.append("f")
                j += 1
            if taken != whole:
                return None
            i = end
        elif axis == "h" and i + 1 < len(axes) and axes[i + 1] == "w" and target[j] == sizes[i] * sizes[i + 1]:
            new_axes.append("p")
            i, j = i + 2, j + 1
        elif axis == "p" and target[j] != sizes[i] and target[j : j + 2] == [x.active.height, x.active.width]:
            new_axes += ["h", "w"]
            i, j = i + 1, j + 2
        elif target[j] == sizes[i]:
            new_axes.append(axis)
            i, j = i + 1, j + 1
        else:
            return None
    return (tuple(new_axes), features) if i == len(axes) and j == len(target) else None


@rule(T.view, T.reshape, torch.reshape)
def view(forward, func, x, *shape, **kwargs):
    given, shape = shape, tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not isinstance(x, ActiveTensor):
        cut = len(shape) == 6 and forward.is_input_map(x)
        patched = patches.cut_into_patches(forward, x, shape) if cut else None
        return _plain_view(forward, func, x, given, kwargs) if patched is None else patched
    shape = shape or tuple(kwargs.get("shape", kwargs.get("size")))
    target = list(shape)
    whole = all(isinstance(side, int) for side in target)
    if whole and -1 in target:
        target[target.index(-1)] = x.shape.numel() // max(1, -math.prod(target))
    found = _regroup(x, target) if x.settled and whole else None
    if found is None:
        other = fold(forward, x, target) if whole and x.settled else None
        other = patches.unfold_patches(x, target) if whole and other is None else other
        other = patches.cut_into_patches(forward, x, target) if whole and other is None else other
        return _dense_view(forward, func, x, given or (shape,)) if other is None else other
    axes, features = found
    if "p" in axes and "p" not in x.axes and forward.policy.token_block is not None:
        tokens = forward.plan.token_set(x.active.height, x.active.width)
        x = ActiveTensor(forward.resite(x, tokens), tokens, x.axes, x.source)
    return ActiveTensor(x.rows.reshape(len(x.rows), *features), x.active, axes)


def _dense_view(forward, func, x, shape):
    """A view of the whole map, which lies channels-last: it may be a copy, and is noted as one."""
    instead = T.reshape if func is T.view and not isinstance(shape[0], torch.dtype) else None
    out = otherwise(forward, func, (x, *shape), {}, instead)
    if isinstance(out, T) and not isinstance(out, ActiveTensor):
        forward.apart.append((out, x))
    return out


def _plain_view(forward, func, x, shape, kwargs):
    """A view of a plain tensor. Dense levels are laid out channels-last, where the model's own map may be viewed otherwise: there it is
    a copy, and neither may be written to in place."""
    try:
        return func(x, *shape, **kwargs)
    except RuntimeError:
        if func is not T.view or kwargs or isinstance(shape[0], torch.dtype):
            raise
    copy = torch.reshape(x, shape[0] if isinstance(shape[0], (tuple, list)) else shape)
    forward.apart += [(x, None), (copy, None)]
    return copy


@rule(torch.flatten, T.flatten)
def flatten(forward, func, x, start_dim=0, end_dim=-1):
    if not isinstance(x, ActiveTensor):
        return func(x, start_dim, end_dim)
    start, end = start_dim % x.dim(), end_dim % x.dim()
    shape = [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    return view(forward, T.reshape, x, *shape)


def _permuted(x, order):
    """``x`` with its dimensions in ``order``; features are physically reordered when their order changes."""
    feature = [i for i, axis in enumerate(x.axes) if axis == "f"]
    moved = [feature.index(i) for i in order if x.axes[i] == "f"]
    rows = x.rows if moved == sorted(moved) else x.rows.permute(0, *(1 + i for i in moved))
    source = x.source if rows is x.rows else None
    return ActiveTensor(rows, x.active, tuple(x.axes[i] for i in order), source, x.scale, x.pad)


@rule(torch.transpose, T.transpose, torch.swapaxes, T.swapaxes)
def transpose(forward, func, x, first, second):
    if not isinstance(x, ActiveTensor) or not x.settled:
        return otherwise(forward, func, (x, first, second), {})
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return _permuted(x, order)


@rule(T.mT.__get__)
def matrix_transposed(forward, func, x):
    """The property ``mT``."""
    return transpose(forward, T.transpose, x, -2, -1) if isinstance(x, ActiveTensor) else func(x)


@rule(torch.movedim, T.movedim)
def movedim(forward, func, x, source, destination):
    if not isinstance(x, ActiveTensor) or not x.settled:
        return otherwise(forward, func, (x, source, destination), {})
    sides = torch.empty(tuple(range(x.dim())), device="meta").movedim(source, destination).shape
    return _permuted(x, list(sides))  # side number i is i long


@rule(torch.permute, T.permute)
def permute(forward, func, x, *dims):
    if not isinstance(x, ActiveTensor) or not x.settled:
        return otherwise(forward, func, (x, *dims), {})
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return _permuted(x, [dim % x.dim() for dim in order])


@rule(torch.chunk, T.chunk, torch.split, T.split, torch.split_with_sizes, T.split_with_sizes)
def split(forward, func, x, size, dim=0):
    if not isinstance(x, ActiveTensor):
        return func(x, size, dim)
    dim = dim % x.dim()
    if x.axes[dim] == "f":
        place = 1 + x.axes[:dim].count("f")
        return tuple(x.with_rows(part) for part in func(x.rows, size, place))
    parts = None
    if x.axes[dim] == "p":
        sizes = [len(part) for part in func(torch.empty(x.shape[dim], 0), size)]
        parts = sequence.divide(x, dim, sizes)
    return otherwise(forward, func, (x, size, dim), {}) if parts is None else parts


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(forward, func, tensors, dim=0, **kwargs):
    actives = [x for x in tensors if isinstance(x, ActiveTensor)]
    if not actives:
        return func(tensors, dim, **kwargs)
    like = actives[0]
    dim = dim % like.dim()
    if like.axes[dim] == "p":
        joint = sequence.join(forward, tensors, dim)
        return otherwise(forward, func, (tensors, dim), kwargs) if joint is None else joint
    plain_ok = like.axes == ("b", "f", "h", "w") or like.axes in (("b", "p", "f"), ("b", "f", "p"))
    same = all(x.axes == like.axes and x.settled and x.active.shape == like.active.shape for x in actives)
    if like.axes[dim] != "f" or not same or not (plain_ok or len(actives) == len(tensors)):
        return otherwise(forward, func, (tensors, dim), kwargs)
    level = sequence.common_set(forward, actives)
    parts = []
    for x in tensors:
        x = x if isinstance(x, ActiveTensor) else forward.activate(x, like.axes, level)
        parts.append(forward.resite(x, level))
    return ActiveTensor(func(parts, 1 + like.axes[:dim].count("f")), level, like.axes)
