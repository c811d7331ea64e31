"""Queries, keys and values of edited rows on every backend, against float64."""

import pytest
import torch
from test_fused import N, active_rows, close, untouched
from test_parity import backend, dtype, random, unwritten_memory_is_nan  # noqa: F401

from sige.kernels import backends, ops


def call(*args):
    """The operator on the device where the backend under test runs; results come back to the CPU, and so do the maps."""
    device = {"triton": torch.cuda, "mps": torch.backends.mps}.get(backends._forced)
    name = {"triton": "cuda", "mps": "mps"}[backends._forced] if device and device.is_available() else "cpu"
    moved = [x.to(name) if isinstance(x, torch.Tensor) else x for x in args]
    result = ops.project_rows_(*moved)
    if name != "cpu":
        args[7].copy_(moved[7])
        args[8].copy_(moved[8])
    return tuple(part.cpu() for part in result)


class Case:
    """Operands at the positions of ``mask`` in maps of N tokens, and the exact results."""

    def __init__(self, dtype, mask, channels, outputs, bias=True, square=True):  # noqa: F811
        self.places = active_rows(mask)
        rows = random(len(self.places), channels, dtype=dtype)
        widths = (outputs,) * 3 if square else (outputs + 8, outputs, outputs)
        weights = [random(width, channels, dtype=dtype, seed=seed) for seed, width in enumerate(widths, 1)]
        biases = [random(width, dtype=dtype, seed=seed) if bias else None for seed, width in enumerate(widths, 4)]
        self.maps = [random(N, outputs, dtype=dtype, seed=seed) for seed in (7, 8)]
        self.before = [x.clone() for x in self.maps]
        self.exact = [
            rows.double() @ weight.double().t() + (0 if each is None else each.double())
            for weight, each in zip(weights, biases)
        ]
        layers = [part for layer in zip(weights, biases) for part in layer]
        self.given = [rows, *layers, *self.maps, self.places]


@pytest.mark.parametrize("channels, outputs", [(3, 17), (72, 48), (640, 320)])
def test_project_rows(dtype, channels, outputs):  # noqa: F811
    case = Case(dtype, "ragged", channels, outputs, bias=channels != 72)
    queries, *old = call(*case.given)
    assert (queries.dtype, close(queries, case.exact[0])) == (dtype, True)
    for now, before, was, exact in zip(case.maps, case.before, old, case.exact[1:], strict=True):
        found = (
            close(now[case.places], exact),
            untouched(now, before, case.places),
            torch.equal(was, before[case.places]),
        )
        assert found == (True, True, True)


@pytest.mark.parametrize("mask", ["one", "none"])
def test_of_few_rows(mask):
    case = Case(torch.float32, mask, 72, 48)
    queries, *_ = call(*case.given)
    found = close(queries, case.exact[0]), untouched(case.maps[0], case.before[0], case.places)
    assert (*found, close(case.maps[0][case.places], case.exact[1])) == (True, True, True)


@pytest.mark.parametrize("square", [True, False], ids=["same width", "wider queries"])
def test_of_1x1_convolutions(dtype, square):  # noqa: F811
    case = Case(dtype, "ragged", 72, 48, square=square)
    case.given[1:7:2] = [weight[:, :, None, None] for weight in case.given[1:7:2]]
    queries, *_ = call(*case.given)
    assert (close(queries, case.exact[0]), close(case.maps[1][case.places], case.exact[2])) == (True, True)


def test_maps_of_another_dtype_keep_it():
    case = Case(torch.float32, "ragged", 72, 48)
    case.given[7:9] = maps = [x.bfloat16() for x in case.maps]
    _, *old = call(*case.given)
    assert ([x.dtype for x in old], close(maps[0][case.places], case.exact[1])) == ([torch.bfloat16] * 2, True)
