"""Functions along feature axes: largest values, norms, sums so far, other orders. Positions stay where they are."""

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.rules.fallback import otherwise
from sige.rules.global_pooling import over_all_positions, pooled
from sige.rules.registry import rule

T = torch.Tensor
_FIRST = """
amax amin argmax argmin max min logsumexp prod any all var std var_mean cumsum cumprod log_softmax flip argsort sort index_select
""".split()
# Function -> where its ``dim`` or ``dims`` stands behind the tensor.
_PLACES = {getattr(place, name): 0 for name in _FIRST for place in (torch, T) if hasattr(place, name)}
_PLACES |= {F.log_softmax: 0, F.glu: 0, torch.norm: 1, T.norm: 1, torch.linalg.vector_norm: 1, torch.roll: 1, T.roll: 1}
_DEFAULTS = {F.glu: -1}
_NORMS = {torch.norm: "fro", T.norm: "fro", torch.linalg.vector_norm: 2}  # and which norm it is unless another is named


@rule(*_PLACES)
def along_features(forward, func, x, *args, **kwargs):
    place, kwargs = _PLACES[func], {name: value for name, value in kwargs.items() if value is not None}
    if func is T.flip and len(args) > 1:
        args = (args,)  # one number after the other
    name = next((name for name in ("dim", "dims") if name in kwargs), None)
    dim = kwargs[name] if name else args[place] if len(args) > place else _DEFAULTS.get(func)
    dims = (dim,) if isinstance(dim, int) and not isinstance(dim, bool) else dim
    listed = isinstance(dims, (tuple, list)) and len(dims) > 0 and all(isinstance(d, int) for d in dims)
    of_map = listed and isinstance(x, ActiveTensor) and not forward.is_dense_here() and over_all_positions(x, dims)
    if of_map and func in _NORMS and len(args) <= 3:
        found = _length(forward, x, *args[2:], order=args[0] if args else _NORMS[func], **kwargs)
        if found is not None:
            return found
    known = listed and isinstance(x, ActiveTensor) and not any(isinstance(y, ActiveTensor) for y in args)
    if not known or any(x.pad) or "out" in kwargs or any(not -x.dim() <= d < x.dim() or x.axes[d] != "f" for d in dims):
        return otherwise(forward, func, (x, *args), kwargs)
    dims = [d % x.dim() for d in dims]
    inner = [1 + x.axes[:d].count("f") for d in dims]
    inner = inner[0] if isinstance(dim, int) else inner
    if name or len(args) <= place:
        kwargs = {**kwargs, name or "dim": inner}
    else:
        args = (*args[:place], inner, *args[place + 1 :])
    found = func(x.rows, *args, **kwargs)
    made = [_wrapped(x, rows, dims) for rows in (found if isinstance(found, tuple) else (found,))]
    if not isinstance(found, tuple):
        return made[0]
    return type(found)(made) if hasattr(found, "n_fields") else tuple(made)


def _length(forward, x, keepdim=False, *, order, dim=None, p=None, ord=None, **kwargs):
    """The Euclidean norm over all positions, as in a global response norm; None for another."""
    order = next((named for named in (p, ord) if named is not None), order)
    if order not in (2, "fro") or kwargs:
        return None
    squares = x.with_rows(x.rows.to(torch.promote_types(x.dtype, torch.float32)).square())
    return pooled(forward, squares, keepdim, False).sqrt().to(x.dtype)


def _wrapped(x, rows, dims):
    """Rows with or without the feature axes ``dims``."""
    axes = x.axes if rows.dim() == x.rows.dim() else tuple(axis for d, axis in enumerate(x.axes) if d not in dims)
    return ActiveTensor(rows, x.active, axes, None, x.scale, x.pad)
