"""What a recorded forward called, boiled down to two digests: steps that called the same can share a program.

The model's Python is not run when a step is replayed. A number that it works out for itself, from the time step say, stands among the
arguments of some torch function or decides which functions are called; so two forwards with equal calls computed the same from their
tensors. The digests are the same in every process, so a saved recording keeps them.
"""

import enum
import functools
import hashlib
import sys
import types
import uuid

import torch

from sige.active_tensor import ActiveTensor

# What hands a tensor's values to Python.
_READS = {"item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal", "allclose",
          "is_nonzero", "nonzero", "unique", "__contains__"}  # fmt: skip

# Their text says all that there is to them.
_PLAIN = {
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
}
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
_PROCESS = uuid.uuid4().hex  # beside what tells two things apart in this process only


class Calls:
    """Collects the calls of one recorded forward: those of functions on maps, and those of functions on conditioning too, such as
    a tensor made from the time step.

    reads: whether the model read a tensor's values.
    """

    def __init__(self):
        self._of_maps, self._of_all = (hashlib.blake2b(digest_size=16) for _ in range(2))
        self.reads = False

    def add(self, func, args, kwargs, out, conditioning):
        """Note one call. ``conditioning`` (``sige.conditioning``) knows whether it works on conditioning alone."""
        if getattr(func, "__name__", "") in _READS:
            self.reads = True
        if out is None:  # such as __setitem__: what it wrote to is its first argument
            out = args[:1]
        if not isinstance(out, (torch.Tensor, tuple, list)):
            return
        called = f"{name_of(func)}{described(args)}{described(kwargs)}\n".encode()
        self._of_all.update(called)
        if not all(part in conditioning for part in (out if isinstance(out, (tuple, list)) else (out,))):
            self._of_maps.update(called)

    def key(self):
        """(digest of calls on maps, digest of all calls), or None for a model that looks at values: its steps cannot be replayed."""
        return None if self.reads else (self._of_maps.hexdigest(), self._of_all.hexdigest())


def described(value):
    """A text that tells two arguments apart, tensors by shape and type alone; the same in every process for data of the usual kinds.

    An object that only this process can tell from others, such as a random generator, has a text that no other process makes.
    """
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, torch.Tensor):
        return f"{'active' if isinstance(value, ActiveTensor) else 'plain'}{tuple(value.shape)}{value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(described, value))})"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{described(key)}:{described(part)}' for key, part in value.items()))}}}"
    if isinstance(value, slice):
        return f"slice{described((value.start, value.stop, value.step))}"
    if isinstance(value, (set, frozenset)):
        return f"set({','.join(sorted(map(described, value)))})"
    if isinstance(value, enum.Enum):
        return f"{name_of(type(value))}.{value.name}"
    if isinstance(value, _NAMED):
        return name_of(value)
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # NumPy's arrays and numbers
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    try:
        return f"{name_of(type(value))} {hash(value)} {_PROCESS}"
    except TypeError:
        return f"{name_of(type(value))} {value!r} {_PROCESS}"


@functools.lru_cache(maxsize=4096)
def name_of(func):
    """A function's or class's module and qualified name, of a property's getter the property's.

    A function that cannot be found by its name, such as one made inside another, has a name that no other process makes.
    """
    owner = getattr(func, "__self__", None)
    owner = owner.fget if isinstance(owner, property) else owner
    if isinstance(owner, (types.GetSetDescriptorType, types.MemberDescriptorType, types.FunctionType)):
        return f"{name_of(owner)}.{func.__name__}"
    home = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__module__", None)
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    if "<" in name:  # F.max_pool2d is made inside another function too, and found under its own name
        name = getattr(func, "__name__", name)
        if getattr(sys.modules.get(home), name, None) is not func:
            name = f"{name} {id(func)} {_PROCESS}"
    elif not isinstance(owner, (type(None), type, types.ModuleType)) or not hasattr(func, "__qualname__"):
        name = f"{name} {id(func)} {_PROCESS}"
    return f"{home}.{name}"
