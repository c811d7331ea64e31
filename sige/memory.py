"""What a session remembers of each step, and the journal that takes an edit back."""

import dataclasses

import torch

from sige.errors import PathError, RecordingError
from sige.kernels import ops
from sige.state.packed import Packed


def _version(tensor):
    return None if tensor.is_inference() else tensor._version


@dataclasses.dataclass
class Entry:
    """One remembered value: a tensor, a tuple of tensors or a packed map, and the kind under which its bytes are reported."""

    kind: str
    value: object
    versions: tuple = ()

    def tensors(self):
        if isinstance(self.value, Packed):
            return self.value.tensors()
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def stamp(self):
        """Note the tensors' versions, so that a change made by others shows."""
        self.versions = tuple(_version(tensor) for tensor in self.tensors())


class Journal:
    """What an edit overwrote, in order; ``undo`` puts it back bit for bit."""

    def __init__(self):
        self._entries = []

    def __len__(self):
        return len(self._entries)

    def rows(self, entry, target, index):
        """Keep the rows of ``target`` (N, C) at ``index`` before they are overwritten; returns them."""
        old = ops.gather_rows(target, index)
        self._entries.append((entry, target, index, old))
        return old

    def keep(self, entry, target, index, old):
        """Take the rows ``old`` that were at ``index`` of ``target``, from an operator that gave them back when it overwrote them."""
        self._entries.append((entry, target, index, old))

    def check(self):
        """Wait until what the edit changed is kept; nothing here."""

    def exchange(self, entry, index, rows):
        """Write ``rows`` (n, C) into an entry's map at ``index`` and keep what was there."""
        old = ops.exchange_rows_(entry.value, index, rows)
        self._entries.append((entry, entry.value, index, old))
        return old

    def value(self, entry):
        """Keep an entry's whole value before it is replaced (a reference, not a copy)."""
        self._entries.append((entry, None, None, entry.value))

    def undo(self):
        while self._entries:
            entry, target, index, old = self._entries.pop()
            if target is None:
                entry.value = old
            else:
                ops.scatter_rows_(target, index, old)

    def commit(self):
        """What was overwritten is not needed any more."""
        self._entries.clear()


class StepMemory:
    """Everything remembered of one forward: entries by (module path, operator, call number), in the order of recording."""

    def __init__(self):
        self.entries = {}
        self.trace = []
        self.reads = {}  # of each map what reads it: see ``sige.state.needs``
        self.writes = {}  # of each map the set at which an edit brings it up to date: (height, width, kind)
        self.stored = {}  # maps that are not used where they lie: key -> ``sige.state.stored.Stored``
        self.inputs = None  # by name, tensors cloned
        self.output = None  # leaves of the output, and how they were nested
        self.tree = None
        self.dense_macs = {}
        self.requests = {}  # what the recording asked of its plan
        self.autocast = None
        self.calls = None  # what the model called, as digests to compare: see ``sige.replay.fingerprint``

    def remember(self, key, kind, value):
        """Keep ``value`` under ``key``."""
        entry = Entry(kind, value)
        entry.stamp()
        self.entries[key] = entry
        return entry

    def recall(self, key):
        """The entry of ``key``; PathError when the recording has none."""
        if key not in self.entries:
            raise PathError(
                f"the model reached {describe(key)}, of which the recording holds nothing: the edit must take the same path "
                "through the model as the recording did"
            )
        return self.entries[key]

    def stamp(self):
        """Note every tensor's version: what changes from here on, changes behind our back."""
        for entry in self.entries.values():
            entry.stamp()

    def check_untouched(self, recording=False):
        """RecordingError when a remembered tensor was modified by anyone but the engine, the model itself while recording included."""
        for key, entry in self.entries.items():
            if entry.versions == tuple(_version(tensor) for tensor in entry.tensors()):
                continue
            if recording:
                raise RecordingError(
                    f"what {describe(key)} hands on is written to in place by the model itself, by an operator such as "
                    "ReLU(inplace=True) behind it: use the out-of-place operator there"
                )
            raise RecordingError(
                f"what was remembered at {describe(key)} was modified in place from outside: record again, and do not write to "
                "tensors that the model returned from inside a recorded layer"
            )

    def bytes_by(self, what, seen=None):
        """Bytes of remembered tensors by ``kind``, or by the ``dtype`` that they are stored in.

        Storage that two entries share counts once, and none that is in ``seen``.
        """
        sizes, seen = {}, set() if seen is None else seen

        def add(kind, tensor, size):
            name = kind if what == "kind" else str(tensor.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + size

        for one in self.stored.values():  # mapped files are one storage: each map counts with its own bytes
            for tensor in one.tensors():
                add(one.kind, tensor, tensor.nbytes)
        tensors = [(entry.kind, tensor) for entry in self.entries.values() for tensor in entry.tensors()]
        tensors += [("output", leaf) for leaf in self.output or () if isinstance(leaf, torch.Tensor)]
        tensors += [("input", leaf) for leaf in (self.inputs or {}).values() if isinstance(leaf, torch.Tensor)]
        for kind, tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                add(kind, tensor, storage.nbytes())
        return sizes


def describe(key):
    """A key in words: ``up_blocks.0.resnets.1.conv1 (conv, call 0)``."""
    path, operator, call = key
    return f"{path or 'the root module'} ({operator}, call {call})"
