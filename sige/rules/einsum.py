"""Einsum: moved axes, attention's products, and products of an active tensor's features with plain ones."""

import functools
import string

import torch

from sige.active_tensor import ActiveTensor
from sige.delayed import Delayed, carried_out
from sige.rules.attention_products import einsum_product
from sige.rules.fallback import counted, otherwise
from sige.rules.linear import product_of_any
from sige.rules.registry import rule
from sige.rules.shape import permute


@rule(torch.einsum)
def einsum(forward, func, equation, *operands):
    """Pure permutations such as ``nhwpqc->nchpwq`` move axes, products of features and plain tensors are made on rows, and attention's
    two products have a rule; anything else has none."""
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    found = None
    if isinstance(equation, str) and len(tensors) == 1:
        found = _permuted(forward, equation, *tensors)
    elif isinstance(equation, str) and len(tensors) == 2:
        found = einsum_product(forward, equation, *tensors, functools.partial(product_of_any, torch.matmul))
    if found is None and isinstance(equation, str):
        found = _einsum_of_features(forward, equation, tensors)
    return otherwise(forward, func, (equation, *carried_out(forward, operands)), {}) if found is None else found


def _einsum_of_features(forward, equation, tensors):
    """An einsum of one active operand, of which features alone are multiplied by plain ones, such as ``bchw,dc->bdhw``; else None."""
    operands, arrow, out = equation.replace(" ", "").partition("->")
    letters = operands.split(",")
    place = next((i for i, x in enumerate(tensors) if isinstance(x, ActiveTensor)), None)
    plain = (
        arrow and all(part.isalpha() and len(set(part)) == len(part) for part in (*letters, out)) and place is not None
    )
    others = [x for i, x in enumerate(tensors) if i != place]
    if not plain or len(letters) != len(tensors) or any(isinstance(x, (ActiveTensor, Delayed)) for x in others):
        return None
    x, own = tensors[place], letters[place]
    axes = dict(zip(own, x.axes))
    places = {letter for letter, axis in axes.items() if axis != "f"}
    elsewhere = set("".join(part for i, part in enumerate(letters) if i != place))
    if len(own) != x.dim() or not x.settled or places & elsewhere or not places <= set(out) or forward.is_dense_here():
        return None
    row = next(letter for letter in string.ascii_letters if letter not in operands)

    def of_rows(part):
        return row + "".join(letter for letter in part if letter not in places)

    letters[place] = of_rows(own)
    tensors = [x.rows if i == place else other for i, other in enumerate(tensors)]
    rows = counted(forward, torch.einsum, (f"{','.join(letters)}->{of_rows(out)}", *tensors), {})
    return ActiveTensor(rows, x.active, tuple(axes.get(letter, "f") for letter in out))


def _permuted(forward, equation, x):
    """An einsum of one active operand that moves axes; None otherwise."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    plain = arrow and before.isalpha() and len(set(before)) == len(before) and sorted(before) == sorted(after)
    if not plain or not isinstance(x, ActiveTensor) or len(before) != x.dim() or not x.settled:
        return None
    return permute(forward, torch.permute, x, [before.index(letter) for letter in after])
