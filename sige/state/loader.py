"""Brings what an edit reads of stored maps into buffers, ahead of the model, on a thread of its own.

A step's maps are loaded in the order in which the model meets them, in groups; the model waits for a group only when it gets there
first. While a step runs, the step after it is on its way, where the budget has room for two. On a GPU the rows are gathered into
pinned memory and copied on a stream of their own, and the model's stream waits, not the host.
"""

import contextlib
import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from sige.memory import Entry

GROUP_BYTES = 4 << 20  # of loaded rows: what is handed to the model at a time


@dataclasses.dataclass
class Loaded(Entry):
    """An entry whose map lies in a buffer, of which only the rows that an edit reads are defined."""

    key: tuple = ()


class Buffers:
    """Buffers on the device, used again for maps of the same shape. ``make(shape, dtype, device)`` makes one."""

    def __init__(self, make=torch.empty):
        self._free, self._make = {}, make
        self.made = 0  # bytes allocated so far

    def take(self, shape, dtype, device):
        """A buffer of that shape; what is in it is undefined. Returns (tensor, event after which it may be written, or None)."""
        free = self._free.get((tuple(shape), dtype, device))
        if free:
            return free.pop()
        self.made += torch.Size(shape).numel() * dtype.itemsize
        return self._make(shape, dtype=dtype, device=device), None

    def give(self, buffer, event=None):
        """Take a buffer back; ``event``: when the device has done with it."""
        self._free.setdefault((tuple(buffer.shape), buffer.dtype, buffer.device), []).append((buffer, event))

    def clear(self):
        """Let go of all buffers that are not in use."""
        self._free.clear()


class Loading:
    """The maps of one step on their way: ``entry(key)`` waits for one."""

    def __init__(self, loader, stored, groups):
        self.loader, self._stored, self.bytes = loader, stored, 0
        self._entries, self._buffers, self._group_of = {}, [], {}
        self._futures = [loader.submit(self._load, group) for group in groups]
        for future, group in zip(self._futures, groups):
            self._group_of.update({key: future for key, _ in group})

    def _load(self, group):
        for key, rows in group:
            one = self._stored[key]
            buffer, free = self.loader.buffers.take(one.data.shape, one.dtype, self.loader.device)
            self._buffers.append(buffer)
            self.loader.copier.fill(buffer, one, rows, free)
            self.bytes += _moved(one, rows)
            self._entries[key] = Loaded(one.kind, buffer, key=key)
        return self.loader.copier.mark()

    def entry(self, key):
        """The entry of a map, its rows loaded as far as the edit reads them."""
        done = self._wait(self._group_of[key])
        self.loader.copier.wait(done, self._entries[key].value)
        return self._entries[key]

    def _wait(self, future):
        began = time.perf_counter()
        done = future.result()
        self.loader.waited += time.perf_counter() - began
        return done

    def settle(self):
        """Wait for all maps."""
        for future in self._futures:
            self._wait(future)

    def close(self):
        """Give the buffers back, once nothing is on its way any more."""
        for future in self._futures:
            future.cancel() or future.exception()
        after = self.loader.copier.used()
        for buffer in self._buffers:
            self.loader.buffers.give(buffer, after)
        self.loader.loaded += self.bytes
        self._buffers, self._entries = [], {}


def _moved(one, rows):
    """Bytes of the stored map that its rows take."""
    count = one.data.shape[0] if rows is None else len(rows)
    return count * one.data.shape[1] * one.data.element_size()


def _leave_the_models_core():
    """A thread begins on the cores of the one that makes it, and where OpenMP binds threads, that is the model's own core alone: this
    one may run wherever the process that started ours may."""
    if os.environ.get("OMP_PROC_BIND") and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))


class Loader:
    """One worker thread and its buffers, on the device where the model computes.

    waited: seconds that the model has waited for loads.   loaded: bytes loaded.
    """

    def __init__(self, device):
        self.device = device
        self.copier = CudaCopier(device) if device.type == "cuda" else Copier()
        self.buffers = Buffers(self.copier.empty)
        self.waited, self.loaded = 0.0, 0
        self._worker = ThreadPoolExecutor(1, "sige-state", initializer=_leave_the_models_core)

    def submit(self, work, *args):
        """Run ``work`` on the worker thread, after what was submitted before; a future."""
        return self._worker.submit(work, *args)

    def load(self, memory, needs):
        """Begin to load what an edit with ``needs`` reads of a step's stored maps, in the order of its entries."""
        groups, size = [[]], 0
        for key, one in memory.stored.items():
            rows = needs.rows(memory, key)
            groups[-1].append((key, rows))
            size += _moved(one, rows)
            if size >= GROUP_BYTES:
                groups.append([])
                size = 0
        return Loading(self, memory.stored, [group for group in groups if group])

    def close(self):
        """End the worker thread; forget the buffers."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self.buffers.clear()


def pinned_empty(shape, dtype):
    """A tensor in host memory that a GPU reads at full speed. RuntimeError where the system gives no more of it."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Copier:
    """Fills buffers where the stored maps can be read directly: from memory or a mapped file."""

    empty = staticmethod(torch.empty)

    def fill(self, buffer, one, rows, free):
        """Put rows (None: all) of a stored map into ``buffer`` (N, C) at their places."""
        if rows is None:
            buffer.copy_(one.rows(device=buffer.device))
        elif len(rows):
            found = one.rows(rows.to(one.data.device), buffer.device)
            buffer.index_copy_(0, rows.to(buffer.device), found)

    def mark(self):
        """What to wait for before the buffers filled so far are read."""

    def wait(self, mark, buffer):
        """Make the model's work wait for a mark."""

    def used(self):
        """When the model has done with its buffers."""


class CudaCopier:
    """Fills buffers on a GPU: rows gathered into pinned memory, copied and spread on a stream of their own."""

    def __init__(self, device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._staged = []  # (event after which it is free, pinned buffer)
        self._index = {}

    def empty(self, shape, dtype, device):
        """A new buffer, of memory that no other stream has work for: it is written to on this stream first."""
        with torch.cuda.stream(self._stream):
            return torch.empty(shape, dtype=dtype, device=device)

    def fill(self, buffer, one, rows, free):
        """See :meth:`Copier.fill`; ``free`` is the event after which the buffer may be written."""
        if rows is not None and not len(rows):
            return
        with torch.cuda.stream(self._stream):
            if free is not None:
                self._stream.wait_event(free)
            where = None if rows is None else self._on_device(rows)
            if one.data.device == buffer.device:  # packed maps that stay on the device
                found = one.rows(where)
            else:
                found = one.used(self._staged_rows(one, rows))
            buffer.copy_(found) if rows is None else buffer.index_copy_(0, where, found)

    def _staged_rows(self, one, rows):
        """Rows of a map in host memory, on the device: straight from pinned memory where they are all wanted."""
        from sige.state.packed import as_bytes

        source = as_bytes(one.data)
        if rows is None and source.is_pinned():
            return source.to(self._device, non_blocking=True)
        shape = source.shape if rows is None else (len(rows), source.shape[1])
        pinned = self._pinned(shape, source.dtype)
        pinned.copy_(source) if rows is None else torch.index_select(source, 0, rows, out=pinned)
        moved = pinned.to(self._device, non_blocking=True)
        done = torch.cuda.Event()
        done.record(self._stream)
        self._staged.append((done, pinned))
        return moved

    def _pinned(self, shape, dtype):
        for place, (done, pinned) in enumerate(self._staged):
            if (tuple(pinned.shape), pinned.dtype) == (tuple(shape), dtype) and done.query():
                del self._staged[place]
                return pinned
        return pinned_empty(shape, dtype)

    def _on_device(self, rows):
        found = self._index.get(id(rows))
        if found is None or found[0] is not rows:
            found = self._index[id(rows)] = (rows, rows.to(self._device))
        return found[1]

    def mark(self):
        """An event behind all copies so far."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, mark, buffer):
        """The model's stream waits, the host does not."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(mark)
        buffer.record_stream(stream)

    def used(self):
        """An event behind what the model's stream was told so far."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event
