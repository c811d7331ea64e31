"""One way to compute an operator of the kernels at the tiles that an edit touches; the composed ways are the baselines.

A call may take microseconds: a step runs it as often as fills a few milliseconds and gives the mean.
"""

import contextlib
import functools
import math
import time
from dataclasses import dataclass

import torch

from sige.runs.errors import UserError
from sige.runs.methods import Runner, Step, kernels
from sige.runs.models.zoo import DTYPES

KERNEL = "kernel"  # the operator of sige.kernels.ops itself, on the run's backend
_LEAST_MS, _MOST_CALLS = 4.0, 400


@dataclass(frozen=True)
class Work:
    """What a call does: the engine's effect has these names too. Multiply-accumulates are in ``multiplies``: ``macs`` is zero, as
    no share of a network's is saved."""

    multiplies: int
    bytes: int
    macs: int = 0


def check(options: dict, model: dict | None = None) -> None:
    """The way must be known of the model's operator."""
    from sige.runs.models.operator_ways import WAYS

    if model is None or model.get("operator") not in WAYS:
        raise UserError(f"an operator's way needs a model of one operator of {', '.join(WAYS)}, e.g. model=operator.")
    try:
        kernels.check(options)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    known = WAYS[model["operator"]]
    if options.get("way") not in known:
        raise UserError(f"unknown way {options.get('way')!r} of {model['operator']}; choose {' or '.join(known)}.")


class Way(Runner):
    """A prepared call, made anew for each mask. kernels: context manager that it runs in."""

    way, kernels = KERNEL, contextlib.nullcontext
    _mask = None

    def _prepare(self, sample, mask):
        from sige.runs.models import operator_ways, operators

        arguments = operator_ways.call(self.module, sample, mask)
        self.run = operator_ways.WAYS[self.module.operator][self.way](arguments)
        self.places, self._mask = arguments.places, mask
        count, itemsize = len(arguments.rows), sample.element_size()
        read = count
        if "conv" in self.module.operator:
            reach = operators.taps(arguments.rows.cpu(), self.module.shape)
            read = len(reach[reach >= 0].unique())
        self.work = Work(*operators.work(self.zoo.model, count, read, itemsize))
        self.run()  # packs weights, fills caches
        self.calls = 1
        once = self._timed_calls()[1]
        self.calls = max(1, min(_MOST_CALLS, math.ceil(_LEAST_MS / max(once, 1e-6))))

    def _timed_calls(self):
        self.zoo.synchronize()
        start = time.perf_counter()
        for _ in range(self.calls):
            result = self.run()
        self.zoo.synchronize()
        return result, (time.perf_counter() - start) * 1e3 / self.calls

    def step(self, edited, mask, around=contextlib.nullcontext):
        """Calls in a row, and their mean time. ``output`` is the bare result, but of a mask's first step, which is looked at for its
        error, the whole map with the results in their places."""
        (sample,) = self.zoo.adapt(edited, self.layout, self.dtype)
        with torch.no_grad(), self.kernels():
            first = self._mask is not mask
            if first:
                self._prepare(sample, mask)
            with around():
                result, ms = self._timed_calls()
            return Step(self._placed(result, sample) if first else result, ms, effect=self.work)

    def _placed(self, result, sample):
        """A result as the whole map that it is part of; elsewhere stands what the operator gives on a whole map."""
        if isinstance(result, tuple):
            result = torch.cat([part.expand(len(self.places), -1) for part in result], 1)
        if result.dtype == torch.int64:  # a list of rows: those of the map that it names
            result = sample.permute(0, 2, 3, 1).reshape(-1, sample.shape[1])[result]
        if result.dim() == 4:
            return result
        whole = self.module(sample)
        rows = whole.permute(0, 2, 3, 1).reshape(-1, whole.shape[1]).clone()
        if self.module.operator == "scatter_rows_":
            rows = result
        else:
            rows[self.places] = result.to(rows.dtype)
        return rows.view(1, *whole.shape[2:], -1).permute(0, 3, 1, 2)


def build(name: str, options: dict, zoo, hardware: dict) -> Way:
    """A way on a copy of the operator of its own; which kernels it runs on :mod:`sige.runs.methods.kernels` says."""
    kernels.need(options, hardware)
    dtype = options.get("dtype") or hardware["dtype"]
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} of a method; choose {' or '.join(DTYPES)}.")
    runner = Way(name, zoo, "channels_last", dtype, dense=options["way"] != KERNEL)
    runner.module, runner.way = zoo.module(runner.layout, dtype), options["way"]
    runner.kernels = functools.partial(kernels.chosen, options)
    return runner
