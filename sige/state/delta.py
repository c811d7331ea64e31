"""What an edit changed of a stored step: kept beside it, written to it when the edit is committed."""

import dataclasses

import torch

from sige.kernels import ops
from sige.memory import Journal
from sige.state.loader import Loaded
from sige.state.plainly import plain
from sige.state.stored import Stored, move, to_disk


@dataclasses.dataclass
class Working:
    """A stored step while a forward of an edit runs: maps in buffers, the rest where it is."""

    memory: object  # StepMemory
    loading: object  # sige.state.loader.Loading

    @property
    def trace(self):
        return self.memory.trace

    def recall(self, key):
        """The entry of ``key``, loaded; PathError when the recording has none."""
        return self.loading.entry(key) if key in self.memory.stored else self.memory.recall(key)


class Delta(Journal):
    """The journal of a stored step: of its maps it keeps what they became, so that taking the edit back is to forget it.

    submit: runs work on another thread.   path: of the file where changes are kept; None keeps them in memory, on ``device``.
    """

    def __init__(self, memory, submit, path=None, device=None):
        super().__init__()
        self._memory, self._submit, self._path, self._device = memory, submit, path, device
        self._touched = {}  # key -> (entry, index) in buffers, while the forward runs
        self._indices, self._changed = {}, None  # key -> index; future of {key: Stored}

    def __len__(self):
        return super().__len__() + len(self._touched) + len(self._indices)

    def rows(self, entry, target, index):
        """See :meth:`Journal.rows`."""
        if not isinstance(entry, Loaded):
            return super().rows(entry, target, index)
        self._touched[entry.key] = (entry, index)
        return ops.gather_rows(target, index)

    def exchange(self, entry, index, rows):
        """See :meth:`Journal.exchange`; of a stored map nothing is kept now, and nothing returned."""
        if not isinstance(entry, Loaded):
            return super().exchange(entry, index, rows)
        self._touched[entry.key] = (entry, index)
        ops.scatter_rows_(entry.value, index, rows)

    def keep(self, entry, target, index, old):
        """See :meth:`Journal.keep`."""
        if isinstance(entry, Loaded):
            self._touched[entry.key] = (entry, index)
        else:
            super().keep(entry, target, index, old)

    def value(self, entry):
        """See :meth:`Journal.value`."""
        if isinstance(entry, Loaded):
            self._touched[entry.key] = (entry, None)
        else:
            super().value(entry)

    @plain
    def finish(self):
        """The forward is through: keep what it changed, before its buffers go to another step."""
        made = {}
        for key, (entry, index) in self._touched.items():
            rows = entry.value if index is None else ops.gather_rows(entry.value, index)
            made[key] = Stored(entry.kind, rows, None, rows.dtype)
            self._indices[key] = index
        self._touched, ready = {}, None
        if any(one.data.is_cuda for one in made.values()):
            ready = torch.cuda.Event()
            ready.record()
        self._changed = self._submit(self._keep, made, ready)

    def _keep(self, made, ready):
        if ready is not None:
            ready.synchronize()
        if self._path is not None:
            return to_disk(made, self._path)
        return move(made, lambda tensor: tensor.to(self._device)) if self._device is not None else made

    def check(self):
        """Wait until the changes are kept. StorageError when the disk is full."""
        if self._changed is not None:
            self._changed.result()

    def undo(self):
        """Forget the changes; put back what is not stored."""
        super().undo()
        self._forget()

    @plain
    def commit(self):
        """Write the changes to the stored maps."""
        if self._changed is not None:
            for key, rows in self._changed.result().items():
                self._memory.stored[key].write(self._indices[key], rows.data)
        super().commit()
        self._forget()

    def _forget(self):
        if self._changed is not None:
            self._changed.cancel() or self._changed.exception()
        self._touched, self._indices, self._changed = {}, {}, None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
