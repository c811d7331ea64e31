"""Which steps of an edit are traced, and which are replayed from the trace of an earlier one."""

import torch

from sige.memory import Journal
from sige.replay.indices import Indices
from sige.replay.program import Program
from sige.replay.tracer import TracedJournal, Tracer, Untraceable, input_tensors

_SHAPES_KEPT = 16  # of plans, with their programs


class Replay:
    """Replays the sparse steps of a session's edits.

    The first step with a plan of some shape runs as it is, and fills what is made once; the next that makes the same calls is traced,
    those after it are replayed, under any mask whose plan has that shape. Nothing is replayed while a submodule has hooks, on a stored
    step, under autocast, or while a dispatch mode (such as a counter) watches.

    wanted: whether to replay at all.   graphs: `Graphs` that run the programs, None: they run as they are.
    replayed: steps carried out from a program so far.
    """

    def __init__(self, model, wanted=True, graphs=None):
        self._model, self._wanted, self.graphs = model, wanted, graphs
        self._state, self._edit, self._modules, self._told = None, 0, [], ()
        self._programs = {}  # by the shape of a plan, the last used last; False for a step seen once, None for one that cannot be
        self.replayed = 0

    def begin(self, plan, changed):
        """An edit begins. Programs hold as long as the model is made of what it is made of now; with ``changed`` inputs, what is
        computed from these once an edit is part of the programs, and they hold for this edit."""
        modules = list(self._model.modules())
        self._modules = modules[1:]
        self._state = hash(tuple(map(_made_of, modules)))
        self._edit += 1
        self._told = ()
        for programs in self._programs.values():
            for key in [key for key in programs if key[0] != self._state or key[1]]:
                del programs[key]
        if plan is not None:
            self._programs[plan.shape] = self._programs.pop(plan.shape, {})
            if len(self._programs) > _SHAPES_KEPT:
                del self._programs[next(iter(self._programs))]

    def _possible(self, memory, journal, inputs, told):
        return (
            self._wanted
            and memory.calls is not None
            and told is not None
            and bool(inputs)
            and not any(x.is_meta for x in inputs)
            and not memory.stored
            and type(journal) is Journal
            and not (memory.autocast or (False,))[0]
            and torch._C._len_torch_dispatch_stack() == 0
            and not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)
        )

    def step(self, plan, memory, journal, call, told, refresh_text, run):
        """One sparse step, replayed where that can be.

        call: the arguments of the model.   told: the tensors that the edit declares changed, None where it declares a number.
        refresh_text: whether the text of joint sequences is computed anew.
        run: called with a journal, carries the step out and returns (output leaves, report); the report is what there is to say of it.
        Returns the same.
        """
        inputs = input_tensors(call)
        if not self._possible(memory, journal, inputs, told):
            return run(journal)
        if told and (
            len(told) != len(self._told) or any(a is not b or v != _version(a) for a, (b, v) in zip(told, self._told))
        ):
            self._edit += 1  # programs that took the earlier ones for constants do not hold
            self._told = tuple((x, _version(x)) for x in told)
        layout = tuple((tuple(x.shape), x.stride(), x.dtype) for x in inputs)
        alike = (self._state, self._edit if told else 0, refresh_text, layout)
        of_maps, of_all = ((*alike, calls) for calls in memory.calls)
        programs = self._programs[plan.shape]
        for key in (of_maps, of_all):
            program = programs.get(key)
            if program and not program.holds(plan):
                del programs[key]
                programs.pop(of_all, None)
            elif program and program.fits(plan):
                step = (inputs, memory, journal, plan)
                with torch.inference_mode(False), torch.no_grad():
                    # with declared inputs a program holds for this edit alone: no graph is worth its capture
                    outputs = program.run(*step) if told or not self.graphs else self.graphs.run(program, *step)
                self.replayed += 1
                return outputs, program.report(plan)
        if of_all not in programs:
            programs[of_all] = False  # the first one: nothing yet
            return run(journal)
        if programs[of_all] is None:
            return run(journal)
        tracer = Tracer(inputs, memory, Indices(plan).tensors.items())
        with tracer:
            outputs, report = run(TracedJournal(tracer, journal))
        try:
            program = Program(tracer, outputs, report, inputs[0].device.type, plan, self._fixed())
            programs[of_all if program.born else of_maps] = program
        except Untraceable:
            programs[of_all] = None
        return outputs, report

    def _fixed(self):
        """Ids of the model's own tensors."""
        return {id(x) for x in (*self._model.parameters(), *self._model.buffers())}


def _version(tensor):
    return None if tensor.is_inference() else tensor._version


def _made_of(module):
    """What a module holds, by identity: parts, parameters, buffers, numbers, and objects such as attention processors."""
    held = (*module.__dict__.values(), *module._parameters.values(), *module._buffers.values())
    return id(module), tuple(map(id, held))
