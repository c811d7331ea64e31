"""Notes every operator of one sparse step: what it was called with, and what it gave."""

import dataclasses
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sige.memory import Journal

_VARIES = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Ref(int):
    """Number of a tensor of a trace, where it stands among the arguments of an operator."""


def references(value):
    """The numbers of tensors in a nest of arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from references(part)
    elif isinstance(value, dict):
        yield from references(list(value.values()))


@dataclasses.dataclass
class Look:
    """What is known of a tensor of a trace once it is gone: shape, dtype, and what tells its memory from that of others alive then."""

    shape: tuple
    dtype: torch.dtype
    storage: int


class Untraceable(Exception):
    """Raised when a step cannot be replayed; the message says why."""


class Tracer(TorchDispatchMode):
    """Inside the ``with`` block every operator is noted. A tensor has a number as long as it lives; the trace keeps none alive that the
    step made, so that tracing takes no more memory than the step.

    named: (name, tensor) of what the step may take of its plan.
    leaves: number -> what it is: ("input", i), ("output", i), ("memory", key, part), ("plan", name) or, found on the way,
        ("constant", tensor).
    calls: [(function, arguments, keyword arguments, numbers of the results)], and what the journal was told.
    looks: number -> `Look`.
    reason: why the step cannot be replayed; None while it can.
    """

    def __init__(self, inputs, memory, named=()):
        super().__init__()
        self.leaves, self.calls, self.reason = {}, [], None
        self.looks = {}
        self._numbers, self._alive, self._count = {}, {}, 0  # by the tensor's id
        self._keys = {id(entry): key for key, entry in memory.entries.items()}
        for key, entry in memory.entries.items():
            for part, tensor in enumerate(entry.tensors()):
                self._leaf(tensor, ("memory", key, part if isinstance(entry.value, tuple) else None))
        for place, leaf in enumerate(memory.output):
            if isinstance(leaf, torch.Tensor):
                self._leaf(leaf, ("output", place))
        for place, tensor in enumerate(inputs):
            self._leaf(tensor, ("input", place))
        for name, tensor in named:
            self._leaf(tensor, ("plan", name))

    def _leaf(self, tensor, what):
        if id(tensor) not in self._numbers:
            self.leaves[self._born(tensor)] = what

    def _born(self, tensor):
        """Number a tensor, and forget it when it dies: another may then get its id."""
        key = id(tensor)
        self._numbers[key] = self._count
        self._alive[key] = weakref.ref(tensor, lambda _: self._dead(key))
        memory = tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0
        self.looks[self._count] = Look(tuple(tensor.shape), tensor.dtype, memory)
        self._count += 1
        return self._numbers[key]

    def _dead(self, key):
        self._numbers.pop(key, None)
        self._alive.pop(key, None)

    def number(self, tensor):
        """The number of a tensor; one that is new here was there before the step, and is taken for a constant."""
        self._leaf(tensor, ("constant", tensor))
        return Ref(self._numbers[id(tensor)])

    def numbered(self, value):
        """A nest of arguments with every tensor replaced by its number."""
        if isinstance(value, torch.Tensor):
            return self.number(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self.numbered(part) for part in value)
        if isinstance(value, dict):
            return {key: self.numbered(part) for key, part in value.items()}
        return value

    def refuse(self, reason):
        """This step cannot be replayed; nothing more is noted."""
        self.reason = self.reason or reason
        self.calls, self._numbers, self._alive, self.leaves = [], {}, {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.reason is None:
            self._note(func, args, kwargs or {}, out)
        return out

    def _note(self, func, args, kwargs, out):
        results = out if isinstance(out, (tuple, list)) else () if out is None else (out,)
        taken = self.numbered(args), self.numbered(kwargs)
        values = not all(isinstance(part, torch.Tensor) for part in results)
        if values and not any(True for _ in references(taken)):
            return  # such as the type that two types are promoted to
        if values or any(tag in func.tags for tag in _VARIES) and not _by_numbers(func, args):
            self.refuse(f"{func} gives what depends on values")
            return
        if self._views_of_constants(func, taken, results):
            for part in results:
                self.number(part)
            return
        for part in results:
            if id(part) not in self._numbers:
                self._born(part)
        self.calls.append((func, *taken, [Ref(self._numbers[id(part)]) for part in results]))

    def _views_of_constants(self, func, taken, results):
        """Whether results are views of what was there before the step: constants themselves."""
        refs = list(references(taken))
        if not refs or func._schema.is_mutable or func is torch.ops.aten.lift_fresh.default:
            return False
        if not all(self.leaves.get(ref, ("made",))[0] == "constant" for ref in refs):
            return False
        storages = {self.leaves[ref][1].untyped_storage()._cdata for ref in refs}
        return all(part.untyped_storage()._cdata in storages for part in results)

    def journal(self, entry, target=None, index=None, old=None):
        """Note that the journal keeps rows ``old`` of ``target`` at ``index``, or the whole value of an entry."""
        if self.reason is None:
            rows = None if target is None else tuple(self.number(part) for part in (target, index, old))
            self.calls.append(("journal", self._keys[id(entry)], rows, entry))


def _by_numbers(func, args):
    """Whether an operator is an indexing by row numbers, whose shape is theirs; by a bool mask it is the number of its Trues."""
    indices = args[1] if func is torch.ops.aten.index.Tensor else ()
    return bool(indices) and not any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices
    )


class TracedJournal(Journal):
    """A journal whose work is noted by a tracer."""

    def __init__(self, tracer, journal):
        super().__init__()
        self._tracer, self._entries = tracer, journal._entries

    def rows(self, entry, target, index):
        """See :meth:`Journal.rows`."""
        old = super().rows(entry, target, index)
        self._tracer.journal(entry, target, index, old)
        return old

    def exchange(self, entry, index, rows):
        """See :meth:`Journal.exchange`."""
        old = super().exchange(entry, index, rows)
        self._tracer.journal(entry, entry.value, index, old)
        return old

    def keep(self, entry, target, index, old):
        """See :meth:`Journal.keep`."""
        super().keep(entry, target, index, old)
        self._tracer.journal(entry, target, index, old)

    def value(self, entry):
        """See :meth:`Journal.value`."""
        super().value(entry)
        self._tracer.journal(entry)


def input_tensors(call):
    """The tensors in a nest of arguments, in order."""
    return [leaf for leaf in tree_flatten(call)[0] if isinstance(leaf, torch.Tensor)]
