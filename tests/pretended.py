"""A GPU that is not there: tensors that lie in host memory and say that they lie on ``cuda:0``.

While `gpu()` is open, ``"cuda"`` gives such tensors everywhere in PyTorch. They keep a GPU's rules: an operator takes no tensor of the
CPU beside them (a single number aside), and what the host would have to wait for is written down. Values are those of the CPU's
operators; our own operators run on Triton's kernels in its interpreter, or on those of another backend. Streams, events and profilers
do nothing; whether a kernel is right when programs run side by side, this cannot tell.
"""

import concurrent.futures
import contextlib
import dataclasses
import types
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from triton.tools.tensor_descriptor import TensorDescriptor

from sige.kernels import backends, ops
from sige.kernels.triton import launch

aten = torch.ops.aten
_DEVICE = torch.device("cuda:0")
_WAITED_FOR = {
    aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten._unique2, aten.bincount,
}  # fmt: skip
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_ACROSS = {aten.copy_, aten._to_copy, *_INDEXING}  # take tensors of both devices


class Pretended(torch.Tensor):
    """A tensor on the GPU that is not there.

    held: the one that holds its values.   waits: names of what made the host wait so far.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = _DEVICE, True, False
    waits = []

    @staticmethod
    def __new__(cls, held):
        look = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="cpu")
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **look)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Pretended({self.held!r})"

    def __deepcopy__(self, memo):
        made = Pretended(self.held.clone())
        return torch.nn.Parameter(made, False) if isinstance(self, torch.nn.Parameter) else made

    def data_ptr(self):
        return self.held.data_ptr()

    def numpy(self):
        raise TypeError("can't convert a cuda:0 tensor to numpy: copy it to host memory first")

    def tolist(self):
        return self._heard("tolist").tolist()

    def cpu(self):
        return self._heard("cpu").clone()

    def cuda(self, *_):
        return self

    def to(self, *args, **kwargs):
        places = [arg.device if isinstance(arg, torch.Tensor) else arg for arg in (*args, kwargs.pop("device", None))]
        places = [torch.device(place) for place in places if isinstance(place, (str, torch.device))]
        args = [arg.dtype if isinstance(arg, torch.Tensor) else arg for arg in args]
        args = [arg for arg in args if not isinstance(arg, (str, torch.device)) and arg is not None]
        if places and places[0].type != "cuda":
            moved = self._heard("to").clone() if places[0].type == "cpu" else self.held.to(places[0])
            return moved.to(*args, **kwargs) if args or kwargs else moved
        return super().to(*args, **kwargs) if args or kwargs else self

    def _heard(self, what):
        self.waits.append(what)
        return self.held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, packet, run = dict(kwargs or {}), func.overloadpacket, func
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if packet not in _ACROSS and any(x.dim() for x in given if not isinstance(x, Pretended)):
            places = [(str(x.device), tuple(x.shape)) for x in given]
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {places}")
        if func.namespace == "sige":
            run = backends.implementation(func._schema.name.removeprefix("sige::"), "cuda")
        home = packet is aten.copy_ and not isinstance(args[0], Pretended)
        indices = args[1] if packet in _INDEXING else ()
        masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        if packet in _WAITED_FOR or home or masked or packet is aten.copy_ and _sent(*args, **kwargs):
            cls.waits.append(str(func))
        device = kwargs.get("device")
        if device is not None and device.type != "meta":
            kwargs["device"] = torch.device("cpu")
        out = run(*tree_map(_held, args), **tree_map(_held, kwargs))
        if home:
            return args[0]
        wrapped = tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) and not x.is_meta else x, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _sent(target, source, non_blocking=False):
    return isinstance(target, Pretended) and not isinstance(source, Pretended) and not non_blocking


def _held(value):
    return value.held if isinstance(value, Pretended) else value


class _Placing(TorchDispatchMode):
    """Makes what is asked for on the GPU there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        if any(isinstance(x, Pretended) for x in tree_leaves((args, kwargs))):
            return Pretended.__torch_dispatch__(func, types, args, kwargs)
        if kwargs.get("device") is None or kwargs["device"].type != "cuda":
            return func(*args, **kwargs)
        if func.overloadpacket is aten._to_copy and not kwargs.get("non_blocking"):
            Pretended.waits.append("copied there")
        out = func(*args, **{**kwargs, "device": torch.device("cpu")})
        own = out.clone() if any(out is arg for arg in args) else out
        return Pretended(own)


class _Idle:
    """An event or a stream of a GPU that has always done everything."""

    def __init__(self, *_, **__):
        pass

    def query(self):
        return True

    def elapsed_time(self, _):
        return 1.0

    def __getattr__(self, _):
        return lambda *_: None


def _to(tensor, *args, real=torch.Tensor.to, **kwargs):
    if args and isinstance(args[0], Pretended):
        args = (args[0].device, args[0].dtype, *args[1:])

    def numbered(place):
        return _DEVICE if isinstance(place, (str, torch.device)) and torch.device(place).type == "cuda" else place

    return real(tensor, *map(numbered, args), **{name: numbered(value) for name, value in kwargs.items()})


def _submit(pool, call, *args, real=concurrent.futures.ThreadPoolExecutor.submit):
    def placed():
        with _Placing():
            return call(*args)

    return real(pool, placed)


def _run(kernel, grid, arguments, warps=4, stages=2, real=launch.run):
    described = {
        name: value.base if isinstance(value, TensorDescriptor) else value for name, value in arguments.items()
    }
    tensors = {name: value for name, value in described.items() if isinstance(value, torch.Tensor)}
    strange = [name for name, value in tensors.items() if not isinstance(value, Pretended)]
    if 0 < len(strange) < len(tensors):
        raise RuntimeError(f"{kernel} is given tensors of the CPU: {strange}")
    real(kernel, grid, {name: _launched(value) for name, value in arguments.items()}, warps, stages)


def _launched(value):
    if isinstance(value, TensorDescriptor):
        return dataclasses.replace(value, base=_held(value.base))
    return _held(value)


_CUDA = {
    "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
    "synchronize": lambda *_: None, "is_current_stream_capturing": lambda: False, "get_device_name": lambda *_: "pretended",
    "get_device_properties": lambda *_: types.SimpleNamespace(multi_processor_count=132, total_memory=80 << 30, major=9, minor=0),
    "Event": _Idle, "Stream": _Idle, "current_stream": _Idle, "stream": lambda _: contextlib.nullcontext(),
}  # fmt: skip


@contextlib.contextmanager
def gpu(kernels="composed"):
    """With a GPU that is not there, served by a backend's ``kernels``. Gives the list of what the host has waited for."""
    modes, swaps = torch._C._len_torch_dispatch_stack, torch.__future__.get_swap_module_params_on_conversion()

    def others():
        return max(0, modes() - 1)

    patches = [mock.patch.object(torch.cuda, name, value) for name, value in _CUDA.items()]
    patches += [
        mock.patch.object(torch._C, "_len_torch_dispatch_stack", others), mock.patch.object(ops, "_listening", others),
        mock.patch.object(torch.Tensor, "to", _to), mock.patch.object(torch.Tensor, "cuda", lambda x, *_: x.to(_DEVICE)),
        mock.patch.object(torch.Tensor, "record_stream", lambda *_: None),
        mock.patch.object(concurrent.futures.ThreadPoolExecutor, "submit", _submit), mock.patch.object(launch, "run", _run),
    ]  # fmt: skip
    patches.append(mock.patch.dict(backends._DEVICE_BACKEND, cuda=kernels))
    Pretended.waits = []
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        backends._own.cache_clear()  # what served GPUs so far
        stack.callback(backends._own.cache_clear)
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(device="cuda") asks no mode
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(_Placing())
        yield Pretended.waits
