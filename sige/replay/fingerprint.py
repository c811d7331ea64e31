"""What a recorded forward called, boiled down to two numbers: steps that called the same can share a program.

The model's Python is not run when a step is replayed. A number that it works out for itself, from the time step say, stands among the
arguments of some torch function or decides which functions are called; so two forwards with equal calls computed the same from their
tensors.
"""

import torch

from sige.active_tensor import ActiveTensor

# What hands a tensor's values to Python.
_READS = {"item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal", "allclose",
          "is_nonzero", "nonzero", "unique", "__contains__"}  # fmt: skip


class Calls:
    """Collects the calls of one recorded forward.

    of_maps: of functions on maps.   of_all: of functions on conditioning too, such as a tensor made from the time step.
    reads: whether the model read a tensor's values.
    """

    def __init__(self):
        self.of_maps = self.of_all = 0
        self.reads = False

    def add(self, func, args, kwargs, out, conditioning):
        """Note one call. ``conditioning`` (``sige.conditioning``) knows whether it works on conditioning alone."""
        if getattr(func, "__name__", "") in _READS:
            self.reads = True
        if not isinstance(out, (torch.Tensor, tuple, list)):
            return
        called = hash((func, _described(args), _described(kwargs)))
        self.of_all = hash((self.of_all, called))
        if not all(part in conditioning for part in (out if isinstance(out, (tuple, list)) else (out,))):
            self.of_maps = hash((self.of_maps, called))

    def key(self):
        """(calls on maps, all calls), or None for a model that looks at values: its steps cannot be replayed."""
        return None if self.reads else (self.of_maps, self.of_all)


def _described(value):
    """Something to hash that tells two arguments apart, tensors by shape and type alone."""
    if isinstance(value, torch.Tensor):
        return (isinstance(value, ActiveTensor), tuple(value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_described(part) for part in value)
    if isinstance(value, dict):
        return tuple((key, _described(part)) for key, part in sorted(value.items()))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return (type(value), value)
