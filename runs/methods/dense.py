"""The model as it is: the ladder of dense baselines (memory layout, dtype, compiled)."""

import contextlib

import torch

from sige.runs.errors import UserError
from sige.runs.methods import Runner, Step, attention, need_graphs
from sige.runs.models.zoo import DTYPES, LAYOUTS


def check(options: dict, model: dict | None = None) -> None:
    """Layout and dtype must be known; the model's attention must be one that can be exchanged where ``attention`` is given."""
    attention.check(options, model)
    for key, known in (("layout", LAYOUTS), ("dtype", DTYPES)):
        if options.get(key) is not None and options[key] not in known:
            raise UserError(f"unknown {key} {options[key]!r} of a method; choose {' or '.join(known)}.")


class Dense(Runner):
    """One forward on the whole edited input.

    in_graph: whether the output lies in a CUDA graph's memory, which the next forward overwrites.
    """

    in_graph = False

    def step(self, edited, mask, around=contextlib.nullcontext):
        """The dense forward; the mask is not used."""
        inputs = self.zoo.adapt(edited, self.layout, self.dtype)
        with torch.inference_mode():
            with around():
                output, ms = self.timed(inputs)
            return Step(output.clone() if self.in_graph else output, ms)


def build(name: str, options: dict, zoo, hardware: dict) -> Dense:
    """A dense runner; ``compile: true`` compiles the module on its first step, with ``mode: reduce-overhead`` into CUDA graphs."""
    graphs = options.get("mode") == "reduce-overhead"
    if graphs:
        need_graphs(hardware)
    dtype = options.get("dtype") or hardware["dtype"]
    runner = Dense(name, zoo, options.get("layout", "contiguous"), dtype, dense=True)
    if graphs:
        runner.in_graph, runner.settled_after = True, 3  # compiled and run once, captured, replayed
    runner.module = zoo.module(runner.layout, dtype)
    attention.exchange(runner.module, options)
    if options.get("compile"):
        runner.module = torch.compile(runner.module, mode=options.get("mode"))
    return runner
