"""The engine: record the original once, then recompute what an edit touches, under any policy."""

import contextlib
import dataclasses
import functools
import time

import torch

from sige.runs.errors import UserError
from sige.runs.methods import Runner, Step, attention, dense, kernels, need_graphs


def merged_dials(options: dict, model: dict) -> dict:
    """What is changed of the named policy: the model's ``dials`` for it, and over them the method's own."""
    of_model = (model.get("dials") or {}).get(options["policy"]) or {}
    return {**of_model, **(options.get("dials") or {})}


def _tuples(value):
    """Lists, and lists in lists, as the tuples that a policy holds."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def resolved_policy(options: dict, model: dict):
    """The named policy with the dials of the model and of the method put in."""
    from sige import policy

    named = policy(options["policy"])
    known = [field.name for field in dataclasses.fields(named)]
    dials = {}
    for key, value in merged_dials(options, model).items():
        if key not in known:
            raise UserError(f"unknown policy dial {key!r}; there are {', '.join(known)}.")
        if isinstance(value, list):
            value = _tuples(value)
        elif key.endswith("dtype") and isinstance(value, str):
            value = getattr(torch, value)
        dials[key] = value
    return dataclasses.replace(named, **dials)


def check(options: dict, model: dict | None = None) -> None:
    """The policy must exist, the dials and the memory budget must fit it; the engine's own sentence says what would."""
    from sige import SigeError
    from sige.state.budget import check_budget

    dense.check(options, model)
    try:
        resolved_policy(options, model or {})
        check_budget(options.get("memory_budget"))
        kernels.check(options)
    except (SigeError, ValueError) as error:
        raise UserError(f"{error}".removesuffix(".") + ".") from error


class Incremental(Runner):
    """A session that holds one recording; each step is an edit of it, taken back afterwards.

    budget: bytes that remembered maps may take on the first tier of memory, or None.   kernels: context manager that a step runs in.
    """

    budget, kernels = None, contextlib.nullcontext

    def record(self, original):
        """Record the original; ``record_ms`` is the time of that forward."""
        inputs = self.zoo.adapt(original, self.layout, self.dtype)
        with torch.no_grad(), self.kernels(), self.session.record():
            _, self.record_ms = self.timed(inputs)

    def step(self, edited, mask, around=contextlib.nullcontext):
        """The forward inside ``session.edit``; setting the edit up is ``plan_ms``, undoing it is not timed."""
        inputs = self.zoo.adapt(edited, self.layout, self.dtype)
        with torch.no_grad(), self.kernels():
            self.zoo.synchronize()
            start = time.perf_counter()
            # On meta tensors the mask alone has values: they decide what is counted.
            edit = self.session.edit(mask if self.zoo.on_meta else mask.to(self.zoo.device), changed=self.changed)
            with edit as effect:
                self.zoo.synchronize()
                plan_ms = (time.perf_counter() - start) * 1e3
                with around():
                    output, ms = self.timed(inputs)
            self.session.undo()
        return Step(output, ms, plan_ms, effect)

    def state_bytes(self):
        """Bytes that the session remembers, by kind."""
        return dict(self.session.state_bytes())

    def state_places(self):
        """Bytes that the session remembers, by stored type; by tier where it has a budget."""
        places = {f"dtype.{name}": size for name, size in sorted(self.session.state_bytes("dtype").items())}
        if self.budget is not None:
            places |= {f"tiers.{name}": size for name, size in self.session.state_tiers().items()}
        return places

    def close(self):
        """Give the model back as it was."""
        self.session.close()


def build(name: str, options: dict, zoo, hardware: dict) -> Incremental:
    """A session of its own on a module of its own. The options ``memory_budget`` (bytes), ``state_folder`` and ``cuda_graphs`` are the
    session's; which kernels it runs on :mod:`sige.runs.methods.kernels` says."""
    from sige import Session

    graphs = bool(options.get("cuda_graphs"))
    if graphs:
        need_graphs(hardware)
    kernels.need(options, hardware)
    runner = Incremental(
        name, zoo, options.get("layout", "channels_last"), options.get("dtype") or hardware["dtype"], options["policy"]
    )
    runner.module = zoo.module(runner.layout, runner.dtype)
    attention.exchange(runner.module, options)
    runner.settled_after = 4 if graphs else 0  # as it is, traced, replayed, captured
    grid = zoo.model.get("token_grid")  # of a model that takes its picture as a sequence of tokens
    runner.budget, runner.kernels = options.get("memory_budget"), functools.partial(kernels.chosen, options)
    runner.session = Session(
        runner.module,
        policy=resolved_policy(options, zoo.model),
        token_grid=tuple(grid) if grid else None,
        memory_budget=runner.budget,
        state_folder=options.get("state_folder"),
        cuda_graphs=graphs,
    )
    return runner
