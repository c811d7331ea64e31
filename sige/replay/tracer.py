"""Notes every operator of one sparse step: what it was called with, and what it gave."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sige.memory import Journal

HELD_BYTES = (
    1 << 30
)  # a step that makes more is dominated by its arithmetic, and is not worth the memory that tracing it takes

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


class Untraceable(Exception):
    """Raised when a step cannot be replayed; the message says why."""


class Tracer(TorchDispatchMode):
    """Inside the ``with`` block every operator is noted; the tensors live until the trace is dropped, so that none takes another's id.

    leaves: tensor id -> what it is: ("input", i), ("output", i), ("memory", key, part) or, found on the way, ("constant", tensor).
    calls: [(function, arguments, keyword arguments, numbers of the results)], and what the journal was told.
    reason: why the step cannot be replayed; None while it can.
    """

    def __init__(self, inputs, memory):
        super().__init__()
        self.leaves, self.calls, self.reason = {}, [], None
        self._numbers, self._held, self._bytes = {}, [], 0
        self._keys = {id(entry): key for key, entry in memory.entries.items()}
        for key, entry in memory.entries.items():
            for part, tensor in enumerate(entry.tensors()):
                self._leaf(tensor, ("memory", key, part if isinstance(entry.value, tuple) else None))
        for place, leaf in enumerate(memory.output):
            if isinstance(leaf, torch.Tensor):
                self._leaf(leaf, ("output", place))
        for place, tensor in enumerate(inputs):
            self._leaf(tensor, ("input", place))

    def _leaf(self, tensor, what):
        if id(tensor) not in self._numbers:
            self._held.append(tensor)
            self._numbers[id(tensor)] = len(self._numbers)
            self.leaves[self._numbers[id(tensor)]] = what

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

    def tensors(self):
        """Every tensor of the trace by its number."""
        return dict(enumerate(self._held))

    def refuse(self, reason):
        """This step cannot be replayed; nothing more is noted."""
        self.reason = self.reason or reason
        self.calls, self._held, self._numbers, self.leaves = [], [], {}, {}

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
        for part in results:
            if id(part) not in self._numbers:
                self._held.append(part)
                self._numbers[id(part)] = len(self._numbers)
                self._bytes += part.nbytes
        self.calls.append((func, *taken, [Ref(self._numbers[id(part)]) for part in results]))
        if self._bytes > HELD_BYTES:
            self.refuse("it makes too much")

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

    def value(self, entry):
        """See :meth:`Journal.value`."""
        super().value(entry)
        self._tracer.journal(entry)


def input_tensors(call):
    """The tensors in a nest of arguments, in order."""
    return [leaf for leaf in tree_flatten(call)[0] if isinstance(leaf, torch.Tensor)]
