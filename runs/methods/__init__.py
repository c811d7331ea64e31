"""Ways to compute one step, one file each. Adding one: a file here, a YAML in conf/method/ that names it as ``runner``.

A method's file defines ``build(name, options, zoo, hardware) -> Runner``; ``options`` is its YAML, resolved. Optionally
``check(options, model)``, called before anything runs, raises UserError for values that cannot be used with that model.
"""

import abc
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from sige.runs.errors import JobFailure


@dataclass
class Step:
    """One computed step: its output, how long the forward took, and for sparse methods what the set-up took and did."""

    output: torch.Tensor
    ms: float
    plan_ms: float | None = None
    effect: Any = None


@dataclass
class Runner(abc.ABC):
    """A method on a model. Subclasses define ``step`` and may override the rest; ``dense`` marks the baselines.

    changed: names of inputs beside the picture that the edit in hand changes, such as the text; the bench sets them.
    settled_after: steps that it takes before it runs as it will go on to run.
    """

    name: str
    zoo: Any
    layout: str
    dtype: str
    policy: str = ""
    dense: bool = False
    record_ms: float | None = None
    module: torch.nn.Module = field(default=None, repr=False)
    changed: tuple[str, ...] = ()
    settled_after: int = 0

    def record(self, original: tuple) -> None:
        """Whatever must be computed once on the original (nothing for a dense method)."""

    @abc.abstractmethod
    def step(self, edited: tuple, mask: torch.Tensor, around=contextlib.nullcontext) -> Step:
        """One step on the edited input; ``around`` makes a context manager around the forward alone, untimed."""

    def state_bytes(self) -> dict[str, int]:
        """Remembered bytes by kind."""
        return {}

    def state_places(self) -> dict[str, int]:
        """Remembered bytes by stored type, ``dtype.<name>``, and with a memory budget by tier, ``tiers.<name>``."""
        return {}

    def close(self) -> None:
        """Release what is held."""

    def timed(self, inputs: tuple) -> tuple[torch.Tensor, float]:
        """(output, milliseconds) of one forward, the device waited for on both sides."""
        self.zoo.synchronize()
        start = time.perf_counter()
        output = self.zoo.loader.forward(self.module, *inputs)
        self.zoo.synchronize()
        return output, (time.perf_counter() - start) * 1e3


def need_graphs(hardware: dict) -> None:
    """JobFailure of status ``skipped`` on hardware that has no CUDA graphs."""
    if hardware["device"] != "cuda":
        raise JobFailure("skipped", f"CUDA graphs need an NVIDIA GPU: not run on hardware {hardware['name']}")
