"""Linear layers and plain matrix products: rows where there are rows, counted everywhere."""

import functools

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor
from sige.delayed import carried_out
from sige.kernels import ops
from sige.rules.attention_products import added_product, einsum_product, product
from sige.rules.autocast import cast
from sige.rules.fallback import otherwise
from sige.rules.linear_attention import linear_product
from sige.rules.registry import rule
from sige.rules.shape import permute


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


def _product(func, forward, first, second, **kwargs):
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
    run = functools.partial(_product, func, **kwargs)
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


@rule(torch.einsum)
def einsum(forward, func, equation, *operands):
    """Pure permutations such as ``nhwpqc->nchpwq`` move axes, and attention's two products have a rule; anything else has none."""
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    found = None
    if isinstance(equation, str) and len(tensors) == 1:
        found = _permuted(forward, equation, *tensors)
    elif isinstance(equation, str) and len(tensors) == 2:
        found = einsum_product(forward, equation, *tensors, functools.partial(_product, torch.matmul))
    return otherwise(forward, func, (equation, *carried_out(forward, operands)), {}) if found is None else found


def _permuted(forward, equation, x):
    """An einsum of one active operand that moves axes; None otherwise."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    plain = arrow and before.isalpha() and len(set(before)) == len(before) and sorted(before) == sorted(after)
    if not plain or not isinstance(x, ActiveTensor) or len(before) != x.dim() or not x.settled:
        return None
    return permute(forward, torch.permute, x, [before.index(letter) for letter in after])
