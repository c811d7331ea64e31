"""Functions of one or several tensors, element by element: comparisons, choices, mixtures. On active tensors the same on their rows."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.rules.fallback import otherwise
from sige.rules.pointwise import aligned
from sige.rules.registry import RULES, rule
from sige.rules.sequence import common_set

T = torch.Tensor
_NAMES = """
sin cos tan asin acos atan sinh cosh log log1p log2 log10 exp2 expm1 reciprocal sign floor ceil round trunc frac erfc logit nan_to_num
clamp_min clamp_max isnan isinf isfinite logical_not bitwise_not gt lt ge le eq ne logical_and logical_or logical_xor bitwise_and
bitwise_or bitwise_xor maximum minimum atan2 hypot copysign fmod remainder floor_divide where addcmul addcdiv lerp masked_fill pow
float_power clamp clip hardshrink
""".split()
_OPERATORS = """
__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __rand__ __or__ __ror__ __xor__ __rxor__ __invert__ __mod__ __rmod__ __floordiv__
__rfloordiv__ __pow__ __rpow__
""".split()
_ACTIVATIONS = (F.softsign, F.tanhshrink, F.hardshrink, F.softshrink)
_FUNCTIONS = [
    *(getattr(place, name) for name in _NAMES for place in (torch, T) if hasattr(place, name)),
    *(getattr(T, name) for name in _OPERATORS),
    *_ACTIVATIONS,
]
_known = {func: RULES.get(func) for func in _FUNCTIONS}  # what serves a single map already


@rule(*_FUNCTIONS)
def elementwise(forward, func, *args, **kwargs):
    if func in (T.__eq__, T.__ne__) and not isinstance(args[1], (T, int, float)):
        return NotImplemented  # such as ``x == None``: Python then says that they are not equal
    several = sum(isinstance(x, T) and x.dim() > 0 for x in (*args, *kwargs.values())) > 1
    if _known[func] is not None and not several:
        return _known[func](forward, func, *args, **kwargs)
    actives = [x for x in args if isinstance(x, ActiveTensor)]
    named = any(isinstance(x, T) for x in kwargs.values()) or kwargs.get("inplace") or "out" in kwargs
    found = None if not actives or named else _rows(forward, args, actives)
    if found is None:
        return otherwise(forward, func, args, kwargs)
    rows, like = found
    return like.with_rows(func(*rows, **kwargs))


def _rows(forward, args, actives):
    """The arguments as rows of one set, or what broadcasts against them, and an active tensor that says where they are; else None."""
    if any(any(x.pad) or x.axes != actives[0].axes for x in actives) or not all(
        isinstance(x, (T, int, float)) for x in args
    ):
        return None
    if any(x.scale != 1 for x in actives):
        if actives[0].axes != ("b", "f", "h", "w"):
            return None
        args = [forward.at_level(x) if isinstance(x, ActiveTensor) and x.scale != 1 else x for x in args]
        actives = [x for x in args if isinstance(x, ActiveTensor)]
    like = actives[0]
    if any(x.active.shape != like.active.shape or x.rows.dim() != like.rows.dim() for x in actives):
        return None
    chosen = common_set(forward, actives)
    if any(x.active is not chosen for x in actives):
        args = [
            ActiveTensor(forward.resite(x, chosen), chosen, x.axes) if isinstance(x, ActiveTensor) else x for x in args
        ]
        like = next(x for x in args if isinstance(x, ActiveTensor))
    plain = [x for x in args if isinstance(x, T) and not isinstance(x, ActiveTensor)]
    if any(x.dim() > like.dim() or x.device != like.device and x.dim() for x in plain):
        return None
    return [x.rows if isinstance(x, ActiveTensor) else aligned(x, like) if isinstance(x, T) else x for x in args], like


@rule(F.prelu, torch.prelu, T.prelu)
def prelu(forward, func, input, weight):
    """A slope for all features or one for each channel, which is the second axis."""
    known = isinstance(input, ActiveTensor) and not isinstance(weight, ActiveTensor) and input.axes[:2] == ("b", "f")
    return input.with_rows(F.prelu(input.rows, weight)) if known else otherwise(forward, func, (input, weight), {})
