"""A model, a method and a worker that are tiny: the runner is tested with them, not the engine.

Configurations name it as loader and as runner (conftest.py makes it importable).
"""

import contextlib
from types import SimpleNamespace

import torch

from sige.runs.methods import Runner, Step

CHANGED = (0,)
SIZE = 16


class Net(torch.nn.Module):
    """Two convolutions, 3 -> 4 -> 3 channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, sample):
        return self.second(torch.relu(self.first(sample)))


# -- a loader


def weights_digest(model):
    return f"random:{model['seed']}"


def build(*arguments):
    """The loader's ``build(model)`` and the method's ``build(name, options, zoo, hardware)``."""
    if len(arguments) == 1:
        return Net().eval().requires_grad_(False)
    return _method(*arguments)


def inputs(model, picture, seed):
    return (picture[None],)


def forward(module, sample):
    return module(sample)


# -- a method


class Sparse(Runner):
    """The dense answer plus ``error`` inside the mask, at a tenth of the MACs as it says; ``fail`` raises instead."""

    def record(self, original):
        self.record_ms = 1.0
        if self.options.get("fail") == "record":
            raise ValueError("no recording today")

    def step(self, edited, mask, around=contextlib.nullcontext):
        if self.options.get("fail") == "step":
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
        with torch.no_grad(), around():
            output, ms = self.timed(self.zoo.adapt(edited, self.layout, self.dtype))
        output = output + self.options.get("error", 0.0) * mask.to(output.device)
        effect = SimpleNamespace(
            macs=6000,
            dense_macs=60000,
            active=mask[None],
            fallbacks=[],
            sparse_macs_by_kind={"conv": 6000, "linear": 0, "attention": 0},
        )
        return Step(output, ms, plan_ms=0.5, effect=effect)

    def state_bytes(self):
        return {"conv_input": 1 << 20, "output": 1 << 19}


def _method(name, options, zoo, hardware):
    runner = Sparse(name, zoo, "contiguous", hardware["dtype"], policy="fake")
    runner.options = options
    runner.module = zoo.module("contiguous", hardware["dtype"])
    return runner


# -- a job

MODEL = {
    "name": "fake",
    "loader": "runner_fakes",
    "weights": "random",
    "seed": 0,
    "input": {"height": SIZE, "width": SIZE},
}
METRICS = {
    "macs": {"collect": "sige.runs.metrics.macs"},
    "error": {"collect": "sige.runs.metrics.error", "gate": {"error_rel_l2": 0.25, "error_rel_l2_in_mask": 0.5}},
    "state": {"collect": "sige.runs.metrics.state"},
    "latency": {
        "collect": "sige.runs.metrics.latency",
        "protocol": "interleaved",
        "rounds": 3,
        "warmup": 1,
        "aa_control": True,
        "paper_runs": 2,
        "noise_limit": 1.0,
    },
    "time_share": {"collect": "sige.runs.metrics.time_share"},
}
DENSE = {"runner": "sige.runs.methods.dense", "layout": "contiguous"}


def configuration(**changes):
    """A resolved configuration as the app composes it; ``changes`` replace its top keys."""
    base = {
        "experiment": "test",
        "model": MODEL,
        "hardware": {"name": "cpu", "device": "cpu", "dtype": "float32", "threads": 1, "allocator": "retain"},
        "dataset": {"synthetic": {"height": SIZE, "width": SIZE, "seed": 0}},
        "edit": {"brush_30": {"name": "brush-30"}},
        "baseline": {"dense": DENSE, "dense_channels_last": {**DENSE, "layout": "channels_last"}},
        "method": {"fake": {"runner": "runner_fakes", "policy": "fake", "error": 0.01}},
        "metric": METRICS,
        "protocol": "interleaved",
        "seed": 0,
    }
    return {**base, **changes}
