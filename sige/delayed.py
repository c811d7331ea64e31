"""``Delayed``: a result of the model's that is put off until it is known what it is for.

Attention written out by hand is a product, a scale, perhaps a mask, a softmax and another product, often with the heads folded into
the batch. Over all positions each of them is dense, and only the second product shows that they are attention, which has a rule of its
own. Until then they stand for what the model would have. Whoever asks for anything else gets that: they are carried out as written.
"""

import weakref

import torch
from torch.utils._pytree import tree_map


class Delayed(torch.Tensor):
    """Looks like the plain result of ``call``, which has not run.

    call: (function, arguments, keyword arguments); the function takes the forward first.
    what: what the rules know of it, see ``sige.rules.written_out``.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape, dtype, device, what, call):
        self = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        self.what, self._call, self._value = what, call, None
        return self

    def value(self, forward):
        """The result itself, carried out once."""
        if self._call is not None:
            function, args, kwargs = self._call
            self._value = function(forward, *carried_out(forward, args), **carried_out(forward, kwargs))
            self._call = self.what = None
        return self._value

    def __repr__(self):
        return f"Delayed({tuple(self.shape)}, {self.what})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Outside the forward it is the result that it stands for."""
        return func(*tree_map(_settled, args), **tree_map(_settled, kwargs or {}))


def delay(forward, what, shape, dtype, device, call):
    """A `Delayed` tensor; from now on the forward looks for them among arguments."""
    made = Delayed(shape, dtype, device, what, call)
    forward.delayed.append(weakref.ref(made))
    return made


def settle(forward):
    """Carry out what somebody still holds at the end of the forward, such as a hook that collects attention maps."""
    for found in forward.delayed:
        held = found()
        if held is not None:
            held._value = forward.densify(held.value(forward))


def _settled(leaf):
    if not isinstance(leaf, Delayed):
        return leaf
    if leaf._call is not None:
        raise RuntimeError("a result that was put off is used before the forward that it comes from has ended")
    return leaf._value


def carried_out(forward, tree):
    """A nest of values in which each delayed tensor is the result itself."""
    return tree_map(lambda leaf: leaf.value(forward) if isinstance(leaf, Delayed) else leaf, tree)


def any_delayed(values):
    """Whether a delayed tensor is among ``values`` or in a list among them."""
    return any(isinstance(x, Delayed) or isinstance(x, (tuple, list)) and any_delayed(x) for x in values)
