"""A session whose every operator runs on Triton gives what the CPU's own backend gives."""

import dataclasses

import pytest
import torch
from torch import nn

import sige
from sige.kernels import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.Conv2d(16, 20, 1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(20, 3, 5, padding=2),
    )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def edited(backend, norm, mask):
    """The edited output under ``backend``, and the calls that it left to the reference."""
    device = DEVICE if backend == "triton" else "cpu"
    model = network().to(device)
    x0 = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    x1 = x0 + 3 * mask.to(device)
    policy = dataclasses.replace(
        sige.policy("pixel"), min_resolution=1, upsample_min_source=1, dense_above=None, norm=norm
    )
    with backends.forced(backend), torch.no_grad():
        session = sige.Session(model, policy)
        with session.record():
            model(x0)
        with session.edit(mask) as effect:
            return model(x1).cpu(), effect


@pytest.fixture(autouse=True)
def no_call_is_declined(monkeypatch):
    def declined(*args):
        raise AssertionError(args)

    monkeypatch.setattr(backends, "say_once", declined)


@pytest.mark.parametrize("norm", ["cached", "incremental"])
def test_an_edit_on_triton_equals_one_on_the_cpu(norm):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:14, 28:] = mask[0, 0] = True
    (got, effect), (exact, other) = (edited(backend, norm, mask) for backend in ("triton", "cpu"))
    assert 0 < effect.macs < 0.5 * effect.dense_macs and effect.macs == other.macs
    assert torch.allclose(got, exact, atol=1e-4)
