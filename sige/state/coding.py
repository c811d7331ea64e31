"""Values and step memories as JSON and tensors, and back. Nothing is pickled: a file can hold data only, no code."""

import dataclasses

import torch
from torch.utils._pytree import treespec_dumps, treespec_loads

from sige.errors import StorageError
from sige.memory import Entry, StepMemory
from sige.policies import Policy
from sige.state.packed import Packed
from sige.windows import Window

_PLAIN = (bool, int, float, str, type(None))


def _classes():
    from sige.rules.transposed import Transposed

    return {"Window": Window, "Transposed": Transposed, "Policy": Policy, "Packed": Packed}


class Encoder:
    """Turns values into what JSON can hold; tensors go into ``tensors`` {name: tensor}, each once.

    known: tensors that are stored elsewhere, {identity(tensor): name}.
    """

    def __init__(self, known=None):
        self.tensors = {}
        self._names = dict(known or {})

    def encode(self, value, what="a value"):
        """``value`` as JSON. StorageError naming ``what`` when it is of a type that cannot be stored."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.encode(item, what) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key, what), self.encode(item, what)] for key, item in value.items()]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if dataclasses.is_dataclass(value) and _classes().get(type(value).__name__) is type(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {type(value).__name__: {name: self.encode(item, what) for name, item in fields.items()}}
        raise StorageError(
            f"{what} is a {type(value).__name__}, which cannot be stored: tensors, numbers, text and nests of them can"
        )

    def _tensor(self, tensor):
        key = identity(tensor)
        if key not in self._names:
            self._names[key] = str(len(self.tensors))
            self.tensors[self._names[key]] = tensor
        last = tensor.dim() == 4 and not tensor.is_contiguous()
        last = last and tensor.is_contiguous(memory_format=torch.channels_last)
        return {"tensor": self._names[key], "layout": "channels_last"} if last else {"tensor": self._names[key]}


def identity(tensor):
    """What two tensors have in common when they are the same numbers in memory."""
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def decode(value, tensors):
    """The value that :meth:`Encoder.encode` turned into ``value``; ``tensors`` {name: tensor}."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = list(value.items())[:1]
    if kind == "tensor":
        found = tensors[inner]
        return found.contiguous(memory_format=torch.channels_last) if "layout" in value else found
    if kind in ("list", "tuple"):
        items = [decode(item, tensors) for item in inner]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {decode(key, tensors): decode(item, tensors) for key, item in inner}
    if kind == "dtype":
        return getattr(torch, inner)
    return _classes()[kind](**{name: decode(item, tensors) for name, item in inner.items()})


_FIELDS = ("trace", "reads", "writes", "dense_macs", "requests", "autocast", "calls")
_LATER = {"calls"}  # not in folders of earlier releases: such steps are not replayed


def encode_step(memory, encoder):
    """A StepMemory as JSON."""
    remembered = {**memory.entries, **{key: one.entry() for key, one in memory.stored.items()}}
    entries = [
        [encoder.encode(key), entry.kind, encoder.encode(entry.value, f"what is remembered at {key}")]
        for key, entry in remembered.items()
    ]
    inputs = [[name, encoder.encode(value, f"input {name!r}")] for name, value in memory.inputs.items()]
    try:
        tree = treespec_dumps(memory.tree)
    except Exception as error:
        raise StorageError(f"the structure of the model's output cannot be stored: {error}") from error
    output = encoder.encode(list(memory.output), "the model's output")
    rest = {field: encoder.encode(getattr(memory, field), field) for field in _FIELDS}
    return {"entries": entries, "inputs": inputs, "output": output, "tree": tree, **rest}


def decode_step(value, tensors):
    """The StepMemory that :func:`encode_step` turned into ``value``."""
    memory = StepMemory()
    memory.inputs = {name: decode(item, tensors) for name, item in value["inputs"]}
    memory.output = decode(value["output"], tensors)
    memory.tree = treespec_loads(value["tree"])
    for field in _FIELDS:
        if field in value or field not in _LATER:
            setattr(memory, field, decode(value[field], tensors))
    for key, kind, item in value["entries"]:
        entry = Entry(kind, decode(item, tensors))
        entry.stamp()
        memory.entries[decode(key, tensors)] = entry
    return memory
