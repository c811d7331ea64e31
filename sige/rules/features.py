"""Operators on feature axes: indexing, stacking and unstacking, axes of size one, means. Positions stay where they are."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.joint_set import JointSet
from sige.rules.fallback import otherwise
from sige.rules.global_pooling import over_all_positions, pooled
from sige.rules.linear_attention import softmax_over_positions
from sige.rules.registry import rule
from sige.rules.sequence import narrow as narrow_positions
from sige.rules.shape import view
from sige.views import overwrite

T = torch.Tensor


def _place(x, dim):
    """The dimension of ``x.rows`` that holds feature axis ``dim`` (or a new one before it)."""
    return 1 + x.axes[:dim].count("f")


def _with(x, rows, axes):
    return ActiveTensor(rows, x.active, tuple(axes), None, x.scale, x.pad)


@rule(torch.unsqueeze, T.unsqueeze)
def unsqueeze(forward, func, x, dim):
    if not isinstance(x, ActiveTensor):
        return func(x, dim)
    return _inserted(x, dim % (x.dim() + 1))


def _inserted(x, dim):
    return _with(x, x.rows.unsqueeze(_place(x, dim)), (*x.axes[:dim], "f", *x.axes[dim:]))


@rule(torch.squeeze, T.squeeze)
def squeeze(forward, func, x, *dims, **kwargs):
    """Feature axes of size one go; an axis of another size stays, as in PyTorch."""
    if not isinstance(x, ActiveTensor):
        return func(x, *dims, **kwargs)
    given = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims or kwargs.get("dim", range(x.dim()))
    gone = sorted(dim % x.dim() for dim in ((given,) if isinstance(given, int) else given))
    gone = [dim for dim in gone if x.shape[dim] == 1]
    if any(x.axes[dim] != "f" for dim in gone):
        return otherwise(forward, func, (x, *dims), kwargs)
    for dim in reversed(gone):
        x = _with(x, x.rows.squeeze(_place(x, dim)), (*x.axes[:dim], *x.axes[dim + 1 :]))
    return x


@rule(torch.unbind, T.unbind)
def unbind(forward, func, x, dim=0):
    if not isinstance(x, ActiveTensor) or x.axes[dim] != "f":
        return otherwise(forward, func, (x, dim), {})
    dim %= x.dim()
    axes = (*x.axes[:dim], *x.axes[dim + 1 :])
    return tuple(_with(x, part, axes) for part in x.rows.unbind(_place(x, dim)))


@rule(torch.select, T.select)
def select(forward, func, x, dim, index):
    if not isinstance(x, ActiveTensor) or x.axes[dim] != "f":
        return otherwise(forward, func, (x, dim, index), {})
    dim %= x.dim()
    return _with(x, x.rows.select(_place(x, dim), index), (*x.axes[:dim], *x.axes[dim + 1 :]))


@rule(torch.stack)
def stack(forward, func, tensors, dim=0):
    actives = [x for x in tensors if isinstance(x, ActiveTensor)]
    if not actives:
        return func(tensors, dim)
    like = actives[0]
    same = all((x.axes, x.scale, x.pad) == (like.axes, like.scale, like.pad) for x in actives)
    if len(actives) < len(tensors) or not same or any(x.active is not like.active for x in actives):
        return otherwise(forward, func, (tensors, dim), {})
    dim %= like.dim() + 1
    rows = torch.stack([x.rows for x in tensors], _place(like, dim))
    return _with(like, rows, (*like.axes[:dim], "f", *like.axes[dim:]))


@rule(torch.narrow, T.narrow)
def narrow(forward, func, x, dim, start, length):
    if not isinstance(x, ActiveTensor) or not isinstance(start, int):
        return otherwise(forward, func, (x, dim, start, length), {})
    dim %= x.dim()
    start += x.shape[dim] if start < 0 else 0
    found = _cut(x, dim, slice(start, start + length))
    return otherwise(forward, func, (x, dim, start, length), {}) if found is None else found


@rule(T.unflatten, torch.unflatten)
def unflatten(forward, func, x, dim, sizes):
    if not isinstance(x, ActiveTensor):
        return func(x, dim, sizes)
    dim %= x.dim()
    sizes, whole = list(sizes), x.shape[dim]
    if -1 in sizes:
        known = -torch.Size(sizes).numel()
        sizes[sizes.index(-1)] = whole // max(known, 1)
    return view(forward, T.reshape, x, *x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def _cut(x, dim, part):
    """``x`` with the slice ``part`` of axis ``dim`` taken; None when that goes through positions."""
    start, stop, step = part.indices(x.shape[dim])
    if (start, stop, step) == (0, x.shape[dim], 1):
        return x
    if x.axes[dim] == "f":
        places = [slice(None)] * x.rows.dim()
        places[_place(x, dim)] = part
        return x.with_rows(x.rows[tuple(places)])
    return narrow_positions(x, dim, start, stop) if x.axes[dim] == "p" and step == 1 else None


@rule(T.__getitem__)
def getitem(forward, func, x, index):
    """Slices, whole numbers and ``None`` on feature axes; slices between the parts of a joint sequence."""
    if not isinstance(x, ActiveTensor):
        return otherwise(forward, func, (x, index), {})
    found = _indexed(x, index if isinstance(index, tuple) else (index,))
    return otherwise(forward, func, (x, index), {}) if found is None else found


def _indexed(x, items):
    if any(item is not None and item is not Ellipsis and not isinstance(item, (int, slice)) for item in items):
        return None
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items = (*items[:place], *[slice(None)] * (x.dim() - taken), *items[place + 1 :])
    dim = 0
    for number, item in enumerate(items):
        if not isinstance(x, ActiveTensor):  # the text alone is left: the rest is ordinary indexing
            return None if x is None else x[(*[slice(None)] * dim, *items[number:])]
        if item is None:
            x, dim = _inserted(x, dim), dim + 1
        elif isinstance(item, slice):
            x, dim = _cut(x, dim, item), dim + 1
        elif isinstance(item, bool) or x.axes[dim] != "f":
            return None
        else:
            x = _with(x, x.rows.select(_place(x, dim), item), (*x.axes[:dim], *x.axes[dim + 1 :]))
    return x


@rule(T.__setitem__)
def setitem(forward, func, x, index, value):
    """Slices of feature axes and parts of a joint sequence, from a tensor of the same positions."""
    items = index if isinstance(index, tuple) else (index,)
    known = isinstance(x, ActiveTensor) and isinstance(value, ActiveTensor) and x.settled and value.settled
    if not known or any(item is not Ellipsis and not isinstance(item, slice) for item in items):
        return otherwise(forward, func, (x, index, value), {})
    target = _indexed(x, items)
    alike = isinstance(target, ActiveTensor) and (target.axes, target.active) == (value.axes, value.active)
    if not alike or target.rows.shape != value.rows.shape or target.dtype != value.dtype:
        return otherwise(forward, func, (x, index, value), {})
    rows = x.rows.clone()
    spans, own = ([(0, len(rows))], [(0, len(rows))]) if target.active is x.active else _spans(x.active, target.active)
    places = _feature_slices(x, items)
    for (start, stop), (first, last) in zip(spans, own):
        rows[(slice(start, stop), *places)] = value.rows[first:last]
    overwrite(forward, x, func)
    x.rows, x.source = rows, None


def _spans(joint, part):
    """For each sample where the rows of ``part``, a set or a shorter sequence, stand in the sequence, and where they are its own."""
    parts = part.parts if isinstance(part, JointSet) else (part,)
    first = next(i for i in range(len(joint.parts)) if joint.parts[i : i + len(parts)] == tuple(parts))
    places = joint.places[first], joint.places[first + len(parts) - 1]
    return [(places[0][b][0], places[1][b][1]) for b in range(joint.batch)], part.segments


def _feature_slices(x, items):
    """The slices of the feature axes, in the order of the rows' own."""
    place = items.index(Ellipsis) if Ellipsis in items else len(items)
    missing = x.dim() - len(items) + (Ellipsis in items)
    whole = (*items[:place], *[slice(None)] * missing, *items[place + 1 :])
    return [item for item, axis in zip(whole, x.axes) if axis == "f"]


@rule(F.softmax, torch.softmax, T.softmax)
def softmax(forward, func, x, dim=None, *args, **kwargs):
    """Over one feature axis, or over all positions, of which a product makes sums."""
    if isinstance(x, ActiveTensor) and dim is not None and x.axes[dim] == "p":
        return softmax_over_positions(forward, func, x, dim, args, kwargs)
    if not isinstance(x, ActiveTensor) or dim is None or x.axes[dim] != "f" or any(x.pad):
        return otherwise(forward, func, (x, dim, *args), kwargs)
    return _with(x, func(x.rows, _place(x, dim % x.dim()), *args, **kwargs), x.axes)


@rule(F.normalize)
def normalize(forward, func, input, p=2.0, dim=1, eps=1e-12, out=None):
    """To length one over one feature axis, as in an RMS norm of a map."""
    if (
        not isinstance(input, ActiveTensor)
        or not isinstance(dim, int)
        or input.axes[dim] != "f"
        or any(input.pad)
        or out is not None
    ):
        return otherwise(forward, func, (input, p, dim, eps, out), {})
    return _with(input, func(input.rows, p, _place(input, dim % input.dim()), eps), input.axes)


@rule(torch.view_as_complex)
def view_as_complex(forward, func, x):
    """The last feature axis holds real and imaginary parts, as in rotary embeddings."""
    if not isinstance(x, ActiveTensor) or x.axes[-1] != "f":
        return otherwise(forward, func, (x,), {})
    return _with(x, func(x.rows.contiguous()), x.axes[:-1])


@rule(torch.view_as_real)
def view_as_real(forward, func, x):
    if not isinstance(x, ActiveTensor):
        return func(x)
    return _with(x, func(x.rows), (*x.axes, "f"))


def _sizes(sizes):
    return tuple(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)


@rule(T.expand)
def expand(forward, func, x, *sizes):
    """Feature axes of size one made larger, as where queries share keys."""
    wanted = _sizes(sizes)
    known = isinstance(x, ActiveTensor) and len(wanted) == x.dim() and x.settled
    if not known or any(a != "f" and size not in (-1, own) for a, size, own in zip(x.axes, wanted, x.shape)):
        return otherwise(forward, func, (x, *sizes), {})
    return _with(x, x.rows.expand(-1, *(size for size, axis in zip(wanted, x.axes) if axis == "f")), x.axes)


@rule(T.repeat)
def repeat(forward, func, x, *sizes):
    """Feature axes several times over."""
    wanted = _sizes(sizes)
    known = isinstance(x, ActiveTensor) and len(wanted) == x.dim() and x.settled
    if not known or any(axis != "f" and size != 1 for axis, size in zip(x.axes, wanted)):
        return otherwise(forward, func, (x, *sizes), {})
    return _with(x, x.rows.repeat(1, *(size for size, axis in zip(wanted, x.axes) if axis == "f")), x.axes)


@rule(T.new_zeros, T.new_ones, T.new_full, T.new_empty, T.new_tensor)
def new(forward, func, x, *args, **kwargs):
    """A tensor of the same type somewhere else: it says nothing of the map."""
    return func(x.rows if isinstance(x, ActiveTensor) else x, *args, **kwargs)


@rule(torch.zeros_like, torch.ones_like, torch.full_like)
def filled(forward, func, x, *args, **kwargs):
    if not isinstance(x, ActiveTensor) or any(x.pad) or kwargs.keys() - {"dtype"}:
        return otherwise(forward, func, (x, *args), kwargs)
    return x.with_rows(func(x.rows, *args, **kwargs))


@rule(torch.repeat_interleave, T.repeat_interleave)
def repeat_interleave(forward, func, x, repeats, dim=None, **kwargs):
    """Channels, or heads, each several times."""
    if not isinstance(x, ActiveTensor) or not isinstance(repeats, int) or dim is None or x.axes[dim] != "f" or kwargs:
        return otherwise(forward, func, (x, repeats, dim), kwargs)
    return _with(x, func(x.rows, repeats, _place(x, dim % x.dim())), x.axes)


@rule(torch.mean, T.mean, torch.sum, T.sum)
def over_features(forward, func, x, dim=None, keepdim=False, **kwargs):
    """Means and sums over feature axes alone, as in an RMS norm written out, or over all positions."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if (
        isinstance(x, ActiveTensor)
        and dims
        and not kwargs
        and not forward.is_dense_here()
        and over_all_positions(x, dims)
    ):
        return pooled(forward, x, keepdim, func in (torch.mean, T.mean))
    if not isinstance(x, ActiveTensor) or not dims or any(x.axes[d] != "f" for d in dims) or any(x.pad):
        given = {} if dim is None else {"dim": dim, "keepdim": keepdim}
        return otherwise(forward, func, (x,), {**given, **kwargs})
    dims = sorted(d % x.dim() for d in dims)
    rows = func(x.rows, [_place(x, d) for d in dims], keepdim, **kwargs)
    return _with(x, rows, x.axes if keepdim else (axis for d, axis in enumerate(x.axes) if d not in dims))
