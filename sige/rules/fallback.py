"""What happens to an operator without a rule: its active inputs are made dense, it runs, and the report names it. One that writes in
place writes to a copy of the whole map, of which the active rows are taken back."""

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from sige.active_tensor import ActiveTensor, rows_at
from sige.errors import ModelError
from sige.macs import MacCounter
from sige.views import overwrite, overwrite_copy

# Reading these touches no data: an active tensor answers for the full map.
_METADATA = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "is_contiguous", "is_floating_point", "is_complex",
    "get_device", "element_size", "__len__", "is_inference", "has_names", "is_signed", "__hash__",
}  # fmt: skip
_PROPERTIES = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_mps", "is_meta", "is_leaf",
    "is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes", "grad_fn", "_backward_hooks", "names",
}  # fmt: skip


def is_metadata(func):
    """Whether a torch function asks for nothing but a tensor's shape, type and the like."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(func.__self__, "__name__", "") in _PROPERTIES
    return name in _METADATA


def name_of(func):
    """A torch function's name for the report."""
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", str(func))
    if "<locals>" in name:  # such as F.max_pool2d, which is made by a function
        return func.__name__
    if name == "__get__" or name.endswith(".__get__"):
        return f"Tensor.{func.__self__.__name__}"
    return name


def _writes(name):
    """Whether a function of this name writes into its first argument."""
    return name == "__setitem__" or name.endswith("_") and not name.startswith("__")


def _any_active(values):
    for value in values:
        if isinstance(value, ActiveTensor) or (isinstance(value, (tuple, list)) and _any_active(value)):
            return True
    return False


# Operators without a rule that multiply matrices: what they ran is counted at the dispatcher, so that none costs nothing.
_MULTIPLIES = frozenset(
    {
        torch.einsum, torch.tensordot, torch.inner, torch.bilinear, torch.conv1d, torch.conv3d, torch.conv_transpose1d,
        torch.conv_transpose2d, torch.conv_transpose3d, torch.chain_matmul, torch.linalg.multi_dot, F.multi_head_attention_forward,
        F.bilinear, torch.mv, torch.dot, torch.addbmm, torch.addmv, torch.conv_tbc,
    }
)  # fmt: skip


def counted(forward, func, args, kwargs):
    """Run ``func``, counting what it multiplies."""
    if func not in _MULTIPLIES:
        return func(*args, **kwargs)
    with MacCounter() as counter:
        result = func(*args, **kwargs)
    for kind, macs in counter.count.by_kind.items():
        forward.count(kind, macs)
    return result


def _check_apart(forward, func, args, kwargs):
    """A write to a tensor that shares its memory with another one in the model, but not here: an active one is lost; ModelError where
    it is plain, because nothing would tell that the model uses it again."""
    writes = _writes(name_of(func).split(".")[-1]) or kwargs.get("inplace")
    if not writes or not args or not isinstance(args[0], torch.Tensor):
        return
    place = args[0].untyped_storage()._cdata
    for copy, of in forward.apart:
        if copy.untyped_storage()._cdata != place:
            continue
        if of is None:
            raise ModelError(
                f"{forward.path[-1] or 'the root module'} calls {name_of(func)}, which writes into a view of a map that is a copy "
                "here, where dense levels lie channels-last; use the out-of-place operator in the model"
            )
        overwrite_copy(forward, of, func)


def _written(forward, func, x, plain, result):
    """The active tensor ``x`` after ``func``, which gave ``result``, wrote to its whole map ``plain``."""
    if plain.shape != x.shape or not x.settled:
        raise ModelError(
            f"{forward.path[-1] or 'the root module'} calls {name_of(func)}, which changes the shape of a map of which only the edited "
            "rows are present; use the out-of-place operator in the model"
        )
    overwrite(forward, x, func)
    x.rows, x.source = rows_at(plain, x.axes, x.active), None
    return None if result is None else x


def otherwise(forward, func, args, kwargs, instead=None):
    """Run ``func`` as it is when no argument is active; else dense, cutting an output of the same shape back to rows.

    instead: what runs on dense arguments in place of ``func``, under its name.
    """
    if not _any_active(args) and not _any_active(kwargs.values()):
        if forward.apart:
            _check_apart(forward, func, args, kwargs)
        return counted(forward, func, args, kwargs)
    if is_metadata(func):
        return func(*args, **kwargs)
    flat, tree = tree_flatten((args, kwargs))
    active = [leaf for leaf in flat if isinstance(leaf, ActiveTensor)]
    name = name_of(func)
    forward.fallbacks.append(f"{name} at {forward.path[-1] or 'the root module'}")
    plain = [forward.densify(leaf, "fallback") if isinstance(leaf, ActiveTensor) else leaf for leaf in flat]
    like = active[0]
    if like is flat[0] and (_writes(name.split(".")[-1]) or kwargs.get("inplace")):
        plain[0] = plain[0].clone()
        args, kwargs = tree_unflatten(plain, tree)
        return _written(forward, func, like, plain[0], counted(forward, func, args, kwargs))
    args, kwargs = tree_unflatten(plain, tree)
    result = counted(forward, instead or func, args, kwargs)
    if isinstance(result, torch.Tensor) and result.shape == like.shape and like.settled:
        return forward.activate(result, like.axes, like.active)
    return result
