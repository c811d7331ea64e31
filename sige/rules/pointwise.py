"""Pointwise operators: the same function on the rows."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, rows_at
from sige.kernels import ops
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.rules.sequence import common_set
from sige.views import overwrite

T = torch.Tensor

# Functions whose value at 0 is not 0: outstanding zero padding must be carried out before them.
_MOVES_ZERO = {
    F.hardsigmoid, F.softplus, F.logsigmoid, F.sigmoid, F.hardtanh, torch.sigmoid, torch.exp, torch.rsqrt, torch.clamp, torch.pow,
    T.sigmoid, T.exp, T.rsqrt, T.clamp, T.clip, torch.clip, T.pow, T.__pow__, F.threshold,
}  # fmt: skip
# Where the argument ``inplace`` stands when it is not given by name, the map not counted.
_INPLACE = {
    F.silu: 0, F.relu: 0, F.relu6: 0, F.mish: 0, F.hardswish: 0, F.hardsigmoid: 0, F.leaky_relu: 1, F.elu: 1, F.hardtanh: 2,
    F.selu: 0, F.celu: 1, F.threshold: 2,
}  # fmt: skip


@rule(
    F.silu, F.relu, F.gelu, F.leaky_relu, F.elu, F.hardswish, F.hardsigmoid, F.hardtanh, F.relu6, F.mish, F.softplus, F.logsigmoid,
    F.selu, F.celu, F.threshold,
    F.tanh, F.sigmoid, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.neg, torch.abs, torch.sqrt, torch.rsqrt,
    torch.clamp, torch.square, torch.pow, torch.erf, T.relu, T.sigmoid, T.tanh, T.exp, T.neg, T.__neg__, T.abs, T.sqrt, T.rsqrt,
    T.clamp, T.square, T.float, T.half, T.bfloat16, T.to, T.type, torch.clip, T.clip, T.pow, T.__pow__,
)  # fmt: skip
def unary(forward, func, x, *args, **kwargs):
    place = _INPLACE.get(func, len(args))
    in_place = kwargs.get("inplace", False) or any(args[place:])
    settings = {name: value for name, value in kwargs.items() if name not in ("inplace", "memory_format")}
    if _is_map(forward, x) and not in_place and (named := _named_activation(func, *args[:place], **settings)):
        return ops.normalize_map(x, 0, activation=named[0], slope=named[1])
    if not isinstance(x, ActiveTensor) or any(isinstance(leaf, T) and leaf.dim() for leaf in (*args, *kwargs.values())):
        return otherwise(forward, func, (x, *args), kwargs)
    if any(x.pad) and func in _MOVES_ZERO:
        return otherwise(forward, func, (x, *args), kwargs)
    args = args[:place]
    if in_place:
        rows = func(x.rows, *args, **settings)
        overwrite(forward, x, func)
        x.rows, x.source = rows, None
        return x
    named = _named_activation(func, *args, **settings)
    if named is None or x.rows.dim() != 2 or not x.rows.is_floating_point():
        return x.with_rows(func(x.rows, *args, **settings))
    activation, slope = named
    return x.with_rows(ops.activate_rows(x.rows, activation=activation, slope=slope))


def _is_map(forward, x):
    """Whether ``x`` is a whole map of a level that runs dense while the others are edited."""
    plain = not isinstance(x, ActiveTensor) and isinstance(x, T) and x.dim() == 4 and x.is_floating_point()
    return (
        plain
        and not forward.recording
        and not forward.is_dense_here()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _named_activation(func, *args, **kwargs):
    """(name, slope) of a function among ``sige.kernels.activations.ACTIVATIONS``, which is called with these settings; or None."""
    if func is F.leaky_relu and len(args) + len(kwargs) <= 1 and not kwargs.keys() - {"negative_slope"}:
        return "leaky_relu", float((*args, *kwargs.values(), 0.01)[0])
    plain = {F.silu: "silu", F.relu: "relu", F.gelu: "gelu", torch.relu: "relu", T.relu: "relu"}.get(func)
    exact = not kwargs or (func is F.gelu and kwargs == {"approximate": "none"})
    return (plain, 0.0) if plain and exact and not args else None


@rule(torch.clone, T.clone, T.contiguous, T.detach, torch.detach)
def same(forward, func, x, *args, **kwargs):
    if not isinstance(x, ActiveTensor):
        return func(x, *args, **kwargs)
    return ActiveTensor(x.rows, x.active, x.axes, x.source, x.scale, x.pad)


@rule(T.type_as)
def type_as(forward, func, x, other):
    return (
        unary(forward, T.to, x, other.dtype)
        if isinstance(x, ActiveTensor)
        else otherwise(forward, func, (x, other), {})
    )


@rule(F.dropout, F.dropout2d, torch.dropout)
def dropout(forward, func, x, p=0.5, training=True, inplace=False):
    if not isinstance(x, ActiveTensor):
        return func(x, p, training)
    if training and p > 0:
        return otherwise(forward, func, (x, p, training), {})
    return x


def aligned(other, like):
    """A plain tensor, broadcast against ``like``, as something that broadcasts against its rows."""
    if other.numel() == 1:
        return other.reshape(1) if other.dim() else other
    shape = (1,) * (like.dim() - other.dim()) + tuple(other.shape)
    other = other.reshape(shape)
    axes, active = like.axes, like.active
    features = [i for i, axis in enumerate(axes) if axis == "f"]
    spread = [i for i, axis in enumerate(axes) if axis in "hwp" and shape[i] > 1]
    if not spread and shape[axes.index("b")] == 1:
        return other.reshape([1, *(shape[i] for i in features)])
    if not spread:
        return other.permute([axes.index("b"), *(i for i in range(like.dim()) if i != axes.index("b"))]).reshape(
            shape[axes.index("b")], *(shape[i] for i in features)
        )[active.sample()]
    expanded = [like.shape[i] if axes[i] in "bhwp" else shape[i] for i in range(like.dim())]
    return rows_at(other.expand(expanded), axes, active)


_PRODUCTS = {torch.mul, T.mul, T.__mul__, T.__rmul__}
_SCALES = {torch.mul, T.mul, T.__mul__, T.__rmul__, torch.div, torch.true_divide, T.div, T.__truediv__, T.true_divide}
_QUOTIENTS = {torch.div, torch.true_divide, T.div, T.__truediv__, T.true_divide}


def _keeps_padding(func, first, second):
    """Whether outstanding zero padding is zero after ``func`` too."""
    padded = [x for x in (first, second) if isinstance(x, ActiveTensor) and any(x.pad)]
    if not padded or func in _PRODUCTS:
        return True
    if isinstance(first, ActiveTensor) and isinstance(second, ActiveTensor):
        return func not in _QUOTIENTS and func not in (T.__rtruediv__,)
    return func in _QUOTIENTS and isinstance(first, ActiveTensor)


def _settled(forward, x, other):
    """``x`` with outstanding up-sampling carried out where ``other`` differs from position to position."""
    if not isinstance(x, ActiveTensor) or x.scale == 1 or any(x.pad) or x.axes != ("b", "f", "h", "w"):
        return x
    if isinstance(other, ActiveTensor):
        alike = other.scale == x.scale and other.active is x.active
        return x if alike else forward.at_level(x)
    spatial = isinstance(other, T) and other.dim() >= 1 and max(other.shape[-2:]) > 1
    return forward.at_level(x) if spatial else x


def _binary_rows(forward, first, second):
    """The two operands as rows, and an active tensor that says where they are; None when no rule applies."""
    first, second = _settled(forward, first, second), _settled(forward, second, first)
    actives = [x for x in (first, second) if isinstance(x, ActiveTensor)]
    like = actives[0]
    if len(actives) == 2:
        if first.axes != second.axes or first.scale != second.scale or first.pad != second.pad:
            return None
        if first.active is not second.active:
            if first.scale != 1 or first.pad != (0, 0, 0, 0) or first.active.shape != second.active.shape:
                return None
            level = common_set(forward, actives)
            first, second = (ActiveTensor(forward.resite(x, level), level, x.axes) for x in (first, second))
            like = first
        if first.rows.dim() != second.rows.dim():
            return None
        return first.rows, second.rows, like
    other = second if like is first else first
    if isinstance(other, torch.Tensor):
        spatial = other.dim() >= 1 and max(other.shape[-2:]) > 1
        if not like.settled and other.numel() > 1 and (spatial or like.axes != ("b", "f", "h", "w")):
            return None
        if other.dim() > like.dim() or other.device != like.device:
            return None
        other = aligned(other, like)
    elif not isinstance(other, (int, float, bool)):
        return None
    return (like.rows, other, like) if like is first else (other, like.rows, like)


@rule(
    torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.maximum, torch.minimum, T.add, T.sub, T.mul, T.div,
    T.__add__, T.__radd__, T.__sub__, T.__rsub__, T.__mul__, T.__rmul__, T.__truediv__, T.__rtruediv__, T.true_divide,
)  # fmt: skip
def binary(forward, func, first, second, **kwargs):
    if isinstance(first, ActiveTensor) and func in _SCALES and not kwargs and not isinstance(second, T) and second == 1:
        return same(forward, func, first)  # such as the residual scale of diffusers' blocks
    found = None
    if (isinstance(first, ActiveTensor) or isinstance(second, ActiveTensor)) and _keeps_padding(func, first, second):
        found = _binary_rows(forward, first, second)
    if found is None:
        return otherwise(forward, func, (first, second), kwargs)
    one, two, like = found
    return like.with_rows(func(one, two, **kwargs))


_OUT_OF_PLACE = {
    T.add_: torch.add, T.sub_: torch.sub, T.mul_: torch.mul, T.div_: torch.div,
    T.__iadd__: torch.add, T.__isub__: torch.sub, T.__imul__: torch.mul, T.__itruediv__: torch.div,
}  # fmt: skip


@rule(*_OUT_OF_PLACE)
def binary_in_place(forward, func, first, second, **kwargs):
    """In place on active rows: the tensor gets new rows; remembered maps that share the old ones stay as they are."""
    if not isinstance(first, ActiveTensor):
        return otherwise(forward, func, (first, second), kwargs)
    result = binary(forward, _OUT_OF_PLACE[func], first, second, **kwargs)
    if not isinstance(result, ActiveTensor) or result.shape != first.shape or result.dtype != first.dtype:
        return otherwise(forward, func, (first, second), kwargs)
    overwrite(forward, first, func)
    first.rows, first.active, first.source = result.rows, result.active, None
    return first


@rule(F.layer_norm, torch.layer_norm)
def layer_norm(forward, func, x, normalized_shape, weight=None, bias=None, eps=1e-5, *rest):
    if not isinstance(x, ActiveTensor):
        return func(x, normalized_shape, weight, bias, eps)
    width = len(normalized_shape)
    if not all(axis == "f" for axis in x.axes[-width:]) or any(x.pad):
        return otherwise(forward, func, (x, normalized_shape, weight, bias, eps), {})
    return x.with_rows(F.layer_norm(x.rows, tuple(normalized_shape), weight, bias, eps))


@rule(F.rms_norm, torch.rms_norm)
def rms_norm(forward, func, x, normalized_shape, weight=None, eps=None):
    if not isinstance(x, ActiveTensor):
        return func(x, normalized_shape, weight, eps)
    width = len(normalized_shape)
    if not all(axis == "f" for axis in x.axes[-width:]) or any(x.pad):
        return otherwise(forward, func, (x, normalized_shape, weight, eps), {})
    return x.with_rows(F.rms_norm(x.rows, tuple(normalized_shape), weight, eps))
