"""What happens to an operator without a rule: its active inputs are made dense, it runs, and the report names it."""

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from sige.active_tensor import ActiveTensor
from sige.errors import ModelError
from sige.macs import MacCounter

# Reading these touches no data: an active tensor answers for the full map.
_METADATA = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "is_contiguous", "is_floating_point", "is_complex",
    "get_device", "element_size", "__len__", "is_inference", "has_names", "is_signed", "__hash__",
}  # fmt: skip
_PROPERTIES = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_mps", "is_meta", "is_leaf",
    "is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes", "grad_fn", "_backward_hooks", "names",
}  # fmt: skip


def _is_metadata(func):
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


def _counted(forward, func, args, kwargs):
    """Run ``func``, counting what it multiplies."""
    if func not in _MULTIPLIES:
        return func(*args, **kwargs)
    with MacCounter() as counter:
        result = func(*args, **kwargs)
    for kind, macs in counter.count.by_kind.items():
        forward.count(kind, macs)
    return result


def otherwise(forward, func, args, kwargs):
    """Run ``func`` as it is when no argument is active; else dense, cutting an output of the same shape back to rows."""
    if not _any_active(args) and not _any_active(kwargs.values()):
        return _counted(forward, func, args, kwargs)
    if _is_metadata(func):
        return func(*args, **kwargs)
    flat, tree = tree_flatten((args, kwargs))
    active = [leaf for leaf in flat if isinstance(leaf, ActiveTensor)]
    name = name_of(func)
    if active[0] is flat[0] and (_writes(name.split(".")[-1]) or kwargs.get("inplace")):
        raise ModelError(
            f"{forward.path[-1] or 'the root module'} calls {name}, which writes into a map of which only the edited rows are "
            "present; use the out-of-place operator in the model"
        )
    forward.fallbacks.append(f"{name} at {forward.path[-1] or 'the root module'}")
    plain = [forward.densify(leaf, "fallback") if isinstance(leaf, ActiveTensor) else leaf for leaf in flat]
    args, kwargs = tree_unflatten(plain, tree)
    result = _counted(forward, func, args, kwargs)
    like = active[0]
    if isinstance(result, torch.Tensor) and result.shape == like.shape and like.settled:
        return forward.activate(result, like.axes, like.active)
    return result
