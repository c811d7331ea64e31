"""CUDA graphs: a replayed step as one launch.

A graph's kernels read and write fixed addresses. So each recorded step has its own, for its remembered maps lie where they lie; what
differs from edit to edit (inputs, the recorded output, the row numbers of the mask) is copied to where the graph reads it. A new mask
of the same shape (``sige.buckets``) needs no new capture, and the host waits for nothing.
"""

import warnings
import weakref

import torch

from sige.memory import Journal


def cuda_capture():
    """A function that captures: given a function without arguments, it returns that function's result, whose tensors every replay
    fills anew, and the replay. While it captures nothing is carried out."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = run()
        return result, graph.replay

    return capture


class Graphs:
    """The graphs of a session's programs, one for each recorded step that is replayed more than once.

    capture: as :func:`cuda_capture` returns it.
    replayed: steps carried out as a graph so far.
    """

    def __init__(self, capture):
        self._capture = capture
        self._taken = weakref.WeakKeyDictionary()  # program -> the rows of the plan where its graphs read them
        # memory of a step -> {program: its graph, None where it ran without one so far}
        self._steps = weakref.WeakKeyDictionary()
        self._refused = False
        self.replayed = 0

    def run(self, program, inputs, memory, journal, plan):
        """As :meth:`Program.run`: the first time without a graph, which compiles what it needs; then captured; then replayed."""
        graphs = self._steps.setdefault(memory, weakref.WeakKeyDictionary())
        if self._refused or program not in graphs:
            graphs[program] = None
            return program.run(inputs, memory, journal, plan)
        graph = graphs[program]
        if graph is None or not graph.holds(program, inputs, memory):
            if program not in self._taken:
                self._taken[program] = Taken(program.taken(plan))
            try:
                graph = graphs[program] = Graph(program, inputs, memory, self._taken[program], self._capture)
            except RuntimeError as error:
                self._refused = True
                warnings.warn(
                    f"a step cannot be captured as a CUDA graph and is replayed without: {error}", stacklevel=2
                )
                return program.run(inputs, memory, journal, plan)
        self.replayed += 1
        return graph.replay(inputs, memory, journal, program.taken(plan))


class Taken:
    """What a program takes of a plan, at the addresses that its graphs read. ``tensors`` are copied."""

    def __init__(self, tensors):
        self.tensors = [tensor.clone() for tensor in tensors]
        self._held = None

    def bring(self, tensors):
        """Copy the tensors of another plan there."""
        if self._held is not tensors:
            for own, given in zip(self.tensors, tensors):
                own.copy_(given)
            self._held = tensors

    def place(self, tensor):
        """Which of them ``tensor`` is, None where it is another."""
        return next((place for place, own in enumerate(self.tensors) if own is tensor), None)


class Graph:
    """One recorded step under one program: of its memory, with ``inputs`` and ``taken`` (a `Taken`) as they lie. RuntimeError where
    ``capture`` (see :func:`cuda_capture`) cannot capture it; the memory is then as it was."""

    def __init__(self, program, inputs, memory, taken, capture):
        self._inputs, self._taken = [x.clone() for x in inputs], taken
        self._recorded = [x.clone() if isinstance(x, torch.Tensor) else x for x in memory.output]
        self._read = _tensors(program.entries(memory))
        self._noted = Noted()
        values = [(entry, entry.value) for entry in program.replaced(memory)]

        def run():
            try:
                outputs = program.call(self._inputs, self._recorded, memory, self._noted, taken.tensors)
                for entry, value in values:
                    self._noted.replace(entry, _tuple(value), _tuple(entry.value))
            finally:
                for entry, value in values:
                    entry.value = value
            return outputs

        self._outputs, self._replay = capture(run)

    def holds(self, program, inputs, memory):
        """Whether the step's memory lies where the graph reads it, and numbers that the host handed to its kernels are the same."""
        here = _tensors(program.entries(memory))
        of_host = [pair for pair in zip(self._inputs, inputs) if here and pair[0].device != here[0].device]
        told = all(torch.equal(x, given) for x, given in of_host)
        return told and len(here) == len(self._read) and all(a is b for a, b in zip(here, self._read))

    def replay(self, inputs, memory, journal, tensors):
        """Carry the step out with what the plan gives (``tensors``) and tell the journal what was overwritten. Gives output leaves."""
        for own, given in zip((*self._inputs, *self._recorded), (*inputs, *memory.output)):
            if isinstance(own, torch.Tensor):
                own.copy_(given)
        self._taken.bring(tensors)
        self._replay()
        for entry, target, index, old in self._noted.kept:
            place = self._taken.place(index)
            journal.keep(entry, target, index if place is None else tensors[place], old)
        return [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self._outputs]


class Noted(Journal):
    """Notes what a captured step overwrites, for the journals of its replays. ``kept``: (entry, target, index, old rows)."""

    def __init__(self):
        super().__init__()
        self.kept = self._entries

    def value(self, entry):
        """Nothing yet: see :meth:`replace`."""

    def replace(self, entry, tensors, others):
        """Write ``others`` into an entry's ``tensors``, which stay where they are, and keep what was there."""
        for own, new in zip(tensors, others, strict=True):
            if own is not new:
                whole, first = own.view(1, -1), torch.zeros(1, dtype=torch.int64, device=own.device)
                self.kept.append((entry, whole, first, whole.clone()))
                own.copy_(new)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _tensors(entries):
    return [tensor for entry in entries for tensor in entry.tensors()]
