"""The engine: record the original once, then recompute what an edit touches, under any policy."""

import contextlib
import dataclasses
import time

import torch

from sige.runs.errors import UserError
from sige.runs.methods import Runner, Step, dense


def _policy(options: dict):
    """The named policy with the YAML's ``dials`` put in."""
    from sige import policy

    dials = dict(options.get("dials") or {})
    for key, value in dials.items():
        if isinstance(value, list):
            dials[key] = tuple(value)
        elif key.endswith("dtype") and isinstance(value, str):
            dials[key] = getattr(torch, value)
    named = policy(options["policy"])
    known = [field.name for field in dataclasses.fields(named)]
    for key in dials:
        if key not in known:
            raise UserError(f"unknown policy dial {key!r}; there are {', '.join(known)}.")
    return dataclasses.replace(named, **dials)


def check(options: dict) -> None:
    """The policy must exist and its dials must fit; the engine's own sentence says what would."""
    from sige import SigeError

    dense.check(options)
    try:
        _policy(options)
    except SigeError as error:
        raise UserError(str(error)) from error


class Incremental(Runner):
    """A session that holds one recording; each step is an edit of it, taken back afterwards."""

    def record(self, original):
        """Record the original; ``record_ms`` is the time of that forward."""
        inputs = self.zoo.adapt(original, self.layout, self.dtype)
        with torch.no_grad(), self.session.record():
            _, self.record_ms = self.timed(inputs)

    def step(self, edited, mask, around=contextlib.nullcontext):
        """The forward inside ``session.edit``; setting the edit up is ``plan_ms``, undoing it is not timed."""
        inputs = self.zoo.adapt(edited, self.layout, self.dtype)
        with torch.no_grad():
            self.zoo.synchronize()
            start = time.perf_counter()
            edit = self.session.edit(mask.to(self.zoo.device))
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

    def close(self):
        """Give the model back as it was."""
        self.session.close()


def build(name: str, options: dict, zoo, hardware: dict) -> Incremental:
    """A session of its own on a module of its own."""
    from sige import Session

    runner = Incremental(
        name, zoo, options.get("layout", "channels_last"), options.get("dtype") or hardware["dtype"], options["policy"]
    )
    runner.module = zoo.module(runner.layout, runner.dtype)
    runner.session = Session(runner.module, policy=_policy(options))
    return runner
