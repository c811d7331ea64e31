"""Linear layers and plain matrix products: rows where there are rows, counted everywhere."""

import functools

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.delayed import carried_out
from sige.kernels import ops
from sige.rules.attention_products import added_product, product
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.linear_attention import linear_product
from sige.rules.registry import rule


@rule(F.linear)
def linear(forward, func, input, weight, bias=None):
    if not isinstance(input, ActiveTensor):
        if input in forward.conditioning and isinstance(weight, torch.nn.Parameter):
            return _conditioning(forward, func, input, weight, bias)
        return _plain(forward, func, input, weight, bias)
    if forward.is_dense_here():
        return _plain(forward, func, forward.densify(input), weight, bias)
    if isinstance(weight, ActiveTensor) or input.axes[-1] != "f" or input.axes.count("f") != 1 or not input.settled:
        forward.count("linear", input.shape.numel() // weight.shape[-1] * weight.shape.numel())
        return otherwise(forward, func, (input, weight, bias), {})
    input, weight, bias = cast(input, weight, bias)
    forward.count("linear", input.active.count * weight.numel())
    out = input.with_rows(ops.linear_rows(input.rows, weight, bias))
    if forward.policy.kv == "reprojected":
        forward.projections[out.rows.untyped_storage()._cdata] = (input, weight, bias, out.rows)
    return out


def _plain(forward, func, input, weight, bias):
    forward.count("linear", input.numel() // weight.shape[-1] * weight.numel())
    if (
        forward.recording
        or weight.dim() != 2
        or input.dtype != weight.dtype
        or input.is_meta
        or torch.is_autocast_enabled(input.device.type)
    ):
        return func(input, weight, bias)
    return ops.linear_rows(input.reshape(-1, weight.shape[1]), weight, bias).view(*input.shape[:-1], weight.shape[0])


def _conditioning(forward, func, input, weight, bias):
    """A layer on time or text: it runs where its input changed, and once only for steps that have the same input."""
    key, shared = forward.key("linear"), forward.conditioning.shared
    if not forward.recording and not forward.conditioning.is_changed(input):
        return forward.recall(key)
    out = shared.find(key, input)
    if out is None:
        out = _plain(forward, func, input, weight, bias)
        shared.keep(key, input, out)
    elif forward.recording:
        forward.count("linear", input.numel() // weight.shape[-1] * weight.numel())
    forward.keep_value(key, "conditioning", out)
    return out


def product_of_any(func, forward, first, second, **kwargs):
    """A product that is not one of attention's two, counted."""
    found = None if kwargs else linear_product(forward, first, second)
    if found is not None:
        return found
    first, second, kwargs = carried_out(forward, (first, second, kwargs))
    found = None if kwargs else linear_product(forward, first, second)
    if found is not None:
        return found
    out = otherwise(forward, func, (first, second), kwargs)
    forward.count("attention" if first.dim() > 2 else "linear", out.numel() * first.shape[-1])
    return out


@rule(
    torch.matmul, torch.bmm, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.mm
)
def matmul(forward, func, input, other=None, *, mat2=None, **kwargs):
    other = mat2 if other is None else other
    run = functools.partial(product_of_any, func, **kwargs)
    found = None if kwargs else product(forward, input, other, run)
    return run(forward, input, other) if found is None else found


@rule(torch.baddbmm, torch.addmm, torch.Tensor.baddbmm, torch.Tensor.addmm)
def added_matmul(forward, func, input, batch1=None, batch2=None, *, mat1=None, mat2=None, beta=1, alpha=1, **kwargs):
    first, second = (mat1 if batch1 is None else batch1), (mat2 if batch2 is None else batch2)
    batched = first.dim() == 3

    def run(forward, added, first, second):
        added, first, second = carried_out(forward, (added, first, second))
        out = otherwise(forward, func, (added, first, second), {"beta": beta, "alpha": alpha, **kwargs})
        forward.count("attention" if batched else "linear", out.numel() * first.shape[-1])
        return out

    found = None if kwargs or not batched else added_product(forward, input, first, second, beta, alpha, run)
    return run(forward, input, first, second) if found is None else found
