"""Where each step's maps lie: as many steps as the memory budget holds on the first tier, the others on the next ones.

    CUDA   device -> pinned host memory -> disk
    CPU    host memory -> disk

Counted are remembered maps (inputs of convolutions, keys and values, tile sums) and the buffers into which those of other tiers
are loaded; inputs, outputs and statistics, a thousandth of them, always stay on the device.
"""

import shutil
import tempfile
import uuid
import weakref
from pathlib import Path

import torch

from sige.errors import BudgetError, StorageError
from sige.memory import Journal
from sige.state import files
from sige.state.budget import check_budget, map_bytes, working_bytes
from sige.state.delta import Delta, Working
from sige.state.loader import Loader, pinned_empty
from sige.state.needs import Needs
from sige.state.plainly import plain
from sige.state.stored import move, stored_from, to_disk


class Tiers:
    """Places of the steps of one recording.

    budget: bytes on the first tier; None: no limit; or {tier: bytes}, which may also limit the pinned memory of the ``host``.
    folder: where the disk tier makes a folder of its own; None: the system's for temporary files.
    """

    def __init__(self, budget=None, folder=None):
        self.budget = check_budget(budget)
        self.prefetch = True  # whether the next step's maps are loaded while a step runs
        self._parent = folder
        self._folder = None
        self._steps, self._tier, self._files = [], [], []
        self._names, self._device, self._loader = ("host", "disk"), torch.device("cpu"), None
        self._needs = weakref.WeakKeyDictionary()
        self._plan, self._order, self._loading = None, [], {}
        self._copied = None  # on a GPU: when the last map that went to host memory has arrived

    # -- placing -----------------------------------------------------------------------------------------------------

    @plain
    def settle(self, number, memory, device):
        """Step ``number``, the next one, was recorded on ``device``: decide where its maps lie; move them, and others, there.

        BudgetError when the budget does not hold the maps that one step needs at a time; StorageError when the disk is full.
        """
        self._device = device
        self._names = ("host", "disk") if device.type == "cpu" else ("device", "host", "disk")
        maps = {key: stored_from(memory.entries[key]) for key in memory.reads if key in memory.entries}
        self._check_step(maps)
        self._steps.append(memory), self._tier.append(self._names[0]), self._files.append(None)
        if any(one.scale is not None for one in maps.values()):
            self._take(memory, maps)  # packed maps are not used where they lie
        while self._first_tier_bytes() > self._limit(self._names[0]):
            self._spill()

    def _check_step(self, maps):
        need, limit = sum(one.working_bytes for one in maps.values()), self._limit(self._names[0])
        if need > limit:
            raise BudgetError(
                f"memory_budget={limit} bytes does not hold one step: the maps that one step of this recording uses take {need} bytes; "
                "give at least that"
            )

    def _limit(self, name):
        first = self.budget.get("first", self.budget.get("device", float("inf")))
        return self.budget.get(name, first if name == self._names[0] else float("inf"))

    def _first_tier_bytes(self):
        held = sum(map_bytes(step) for step, tier in zip(self._steps, self._tier) if tier == self._names[0])
        return held + self._buffer_bytes()

    def _buffer_bytes(self):
        """Room for the maps of the steps that are loaded: two of them, or one where the budget has no more."""
        need = max((working_bytes(step) for step in self._steps if step.stored), default=0)
        return 2 * need if 2 * need <= self._limit(self._names[0]) else need

    @property
    def _ahead(self):
        """Whether two steps' buffers fit."""
        need = max((working_bytes(step) for step in self._steps), default=0)
        return self.prefetch and 2 * need <= self._limit(self._names[0])

    def _spill(self):
        """Move the last step of the first tier to the next one that has room."""
        number = max(i for i, tier in enumerate(self._tier) if tier == self._names[0])
        memory = self._steps[number]
        maps = memory.stored or {key: stored_from(memory.entries[key]) for key in memory.reads}
        moved = None
        if "host" in self._names[1:]:
            held = sum(map_bytes(step) for step, tier in zip(self._steps, self._tier) if tier == "host")
            if held + map_bytes(memory) <= self._limit("host"):
                moved, tier = self._pinned(maps), "host"
        if moved is None:
            self._files[number], tier = self._new_file("step", number), "disk"
            moved = to_disk(maps, self._files[number])
        self._take(memory, moved)
        self._tier[number] = tier

    @staticmethod
    def _take(memory, maps):
        """From now on the maps of a step are stored, and no entries that are used where they lie."""
        for key in maps:
            memory.entries.pop(key, None)
        memory.stored = maps

    @plain
    def renew(self, number, memory):
        """Move the maps of a step that was recorded anew to the tier of step ``number``, whose place :meth:`adopt` gives it.

        Returns the file that they are in, or None. StorageError when the disk is full: nothing is changed.
        """
        maps, path = {key: stored_from(memory.entries[key]) for key in memory.reads}, None
        if self._tier[number] == "disk":
            path = self._new_file("step", number)
            self._take(memory, to_disk(maps, path))
        elif self._tier[number] != self._names[0]:
            self._take(memory, self._pinned(maps) or maps)
        elif any(one.scale is not None for one in maps.values()):
            self._take(memory, maps)
        return path

    def adopt(self, number, memory, path=None):
        """Step ``number`` is from now on ``memory``, its maps in the file ``path``; the old file goes."""
        self._steps[number].__dict__.update(memory.__dict__)
        if path is not None:
            self._files[number].unlink(missing_ok=True)
            self._files[number] = path

    def _pinned(self, maps):
        """The maps in host memory, pinned for a GPU; None where the system gives no more of it."""

        def place(tensor):
            if tensor.is_meta:
                return tensor
            host = pinned_empty(tensor.shape, tensor.dtype) if cuda else torch.empty(tensor.shape, dtype=tensor.dtype)
            return host.copy_(tensor, non_blocking=cuda)

        cuda = self._device.type == "cuda"
        try:
            moved = move(maps, place)
        except RuntimeError:
            return None
        if cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self._device))
        return moved

    def wait(self):
        """Wait until every map that was moved to host memory has arrived there."""
        if self._copied is not None:
            self._copied.synchronize()
        self._copied = None

    def _new_file(self, what, number):
        return self.folder() / f"{what}-{number:04d}-{uuid.uuid4().hex[:8]}.safetensors"

    def folder(self):
        """The folder of the disk tier, made when first asked for; it goes with the session."""
        if self._folder is None:
            path = Path(self._parent or tempfile.gettempdir()) / f"sige-state-{uuid.uuid4().hex[:8]}"
            try:
                path.mkdir(parents=True)
            except OSError as error:
                raise StorageError(
                    f"state_folder {path.parent} cannot be used ({error.strerror or error}): choose another"
                ) from error
            self._folder = path
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return self._folder

    def bytes(self):
        """Remembered bytes by tier."""
        total, seen = dict.fromkeys(self._names, 0), set()
        for step, tier in zip(self._steps, self._tier):
            stored = sum(one.nbytes for one in step.stored.values())
            total[tier] += stored
            total[self._names[0]] += sum(step.bytes_by("kind", seen).values()) - stored
        return total

    # -- an edit -----------------------------------------------------------------------------------------------------

    @plain
    def begin(self, plan, numbers):
        """An edit under ``plan`` is about to run the steps ``numbers``, in that order: the first stored one is on its way."""
        self.wait()
        self._plan = plan
        self._order = [number for number in numbers if self._steps[number].stored]
        if self._order and self.prefetch:
            self._load(self._order[0])

    def journal(self, number):
        """The journal of an edit for a step: what it needs to be taken back, or to be committed."""
        memory = self._steps[number]
        if not memory.stored:
            return Journal()
        path, tier = None, self._tier[number]
        if tier == "disk" and not self._device.type == "meta":
            path = self._new_file("edit", number)
        host = torch.device("cpu") if tier == "host" and self._device.type == "cuda" else None
        return Delta(memory, self._worker().submit, path, host)

    @plain
    def open(self, number):
        """What a forward of an edit reads its step from: the StepMemory, or a :class:`Working` that loads it."""
        memory = self._steps[number]
        if not memory.stored:
            return memory
        loading = self._loading.pop(number, None) or self._load(number)
        self._loading.pop(number, None)
        following = [later for later in self._order if later > number]
        if following and self._ahead:
            self._load(following[0])
        if not self.prefetch:
            loading.settle()
        return Working(memory, loading)

    @plain
    def shut(self, working, journal, done):
        """The forward that :meth:`open` served is through (``done``) or failed."""
        if isinstance(working, Working):
            if done:
                journal.finish()
            working.loading.close()

    def end(self):
        """The edit runs no more forwards."""
        for loading in self._loading.values():
            loading.close()
        self._loading, self._order = {}, []

    def _load(self, number):
        if number not in self._loading:
            needs = self._needs.get(self._plan)
            if needs is None:
                needs = self._needs[self._plan] = Needs(self._plan)
            self._loading[number] = self._worker().load(self._steps[number], needs)
        return self._loading[number]

    def _worker(self):
        if self._loader is None:
            self._loader = Loader(self._device)
        return self._loader

    @property
    def waited(self):
        """Seconds that edits have waited for maps to be loaded (on a GPU the device waits, and this stays 0)."""
        return self._loader.waited if self._loader else 0.0

    @property
    def loaded(self):
        """Bytes loaded by edits."""
        return self._loader.loaded if self._loader else 0

    def forget_cached(self):
        """Let the system drop what it holds of the files in memory: the next loads come from the disk itself."""
        for step, path in zip(self._steps, self._files):
            if path is not None:
                files.forget_cached(path, [tensor for one in step.stored.values() for tensor in one.tensors()])

    def close(self):
        """End the worker, remove the files."""
        self.end()
        if self._loader is not None:
            self._loader.close()
        self._loader = None
        self._steps, self._tier, self._files = [], [], []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
