"""Which steps of an edit are traced, and which are replayed from the trace of an earlier one."""

import torch

from sige.memory import Journal
from sige.replay.program import Program
from sige.replay.tracer import TracedJournal, Tracer, Untraceable, input_tensors


class Replay:
    """Replays the sparse steps of a session's edits.

    The first step with a plan runs as it is, and fills what is made once; the next that makes the same calls is traced, those after
    it are replayed. Nothing is replayed while a submodule has hooks, on a stored step, under autocast, or while a dispatch mode (such
    as a counter) watches. Programs are kept with their plan.

    wanted: whether to replay at all.   replayed: steps carried out from a program so far.
    """

    def __init__(self, model, wanted=True):
        self._model, self._wanted = model, wanted
        self._state, self._edit, self._modules, self._told = None, 0, [], ()
        self.replayed = 0

    def begin(self, plan, changed):
        """An edit begins. Its programs hold as long as the model is made of what it is made of now; with ``changed`` inputs, what is
        computed from these once an edit is part of the programs, and they hold for this edit."""
        self._modules = [module for module in self._model.modules() if module is not self._model]
        self._state = hash(tuple(_made_of(module) for module in self._model.modules()))
        self._edit += 1
        self._told = ()
        if plan is not None:
            stale = [key for key in plan.programs if key[0] != self._state or key[1]]
            for key in stale:
                del plan.programs[key]

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
        for key in (of_maps, of_all):
            program = plan.programs.get(key)
            if program and program.fits():
                with torch.inference_mode(False), torch.no_grad():
                    outputs = program.run(inputs, memory, journal)
                self.replayed += 1
                return outputs, program.report
        if of_all not in plan.programs:
            plan.programs[of_all] = False  # the first one: nothing yet
            return run(journal)
        if plan.programs[of_all] is None:
            return run(journal)
        tracer = Tracer(inputs, memory)
        with tracer:
            outputs, report = run(TracedJournal(tracer, journal))
        try:
            program = Program(tracer, outputs, report, inputs[0].device.type)
            plan.programs[of_all if program.born else of_maps] = program
        except Untraceable:
            plan.programs[of_all] = None
        return outputs, report


def _version(tensor):
    return None if tensor.is_inference() else tensor._version


def _made_of(module):
    """What a module holds, by identity: parts, parameters, buffers, numbers, and objects such as attention processors."""
    held = (*module.__dict__.values(), *module._parameters.values(), *module._buffers.values())
    return id(module), tuple(map(id, held))
