"""The activations that fused operators know by name, in place, for the backends that are made of PyTorch's operators."""

import torch.nn.functional as F
from torch import _C

ACTIVATIONS = ("none", "silu", "relu", "leaky_relu", "gelu")


def check(activation):
    """Return ``activation`` if a fused operator knows it, else raise ValueError that lists them."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    return activation


def applied(values, activation, slope):
    """``values`` through an activation, as new values; themselves where there is none. As `apply_` otherwise."""
    if activation == "leaky_relu":
        return F.leaky_relu(values, slope)
    return values if activation == "none" else getattr(F, activation)(values)


def apply_(values, activation, slope):
    """Apply an activation to ``values`` in place; returns them. ``slope``: of ``leaky_relu`` below zero. ``gelu`` is the exact one."""
    if activation == "silu":
        F.silu(values, inplace=True)
    elif activation == "relu":
        values.relu_()
    elif activation == "leaky_relu":
        F.leaky_relu(values, slope, inplace=True)
    elif activation == "gelu":
        _C._nn.gelu_(values)
    return values
