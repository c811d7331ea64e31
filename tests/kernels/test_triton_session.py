"""A session whose every operator runs on Triton gives what the CPU's own backend gives."""

import contextlib
import dataclasses

import pytest
import torch
from diffusers import UNet2DModel
from pretended import gpu
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


def replayed(backend, name, mask, device):
    """Outputs of three edited steps of a small U-Net under ``backend``, and how many of them were replayed."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4, attention_head_dim=None,
    )  # fmt: skip
    model = model.to(device).eval().requires_grad_(False)
    x0 = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    policy = dataclasses.replace(sige.policy(name), min_resolution=1, upsample_min_source=1, dense_above=None)
    times = [torch.tensor(time) for time in (700, 400, 100)]
    with backends.forced(backend), torch.no_grad():
        session = sige.Session(model, policy)
        with session.record():
            for time in times:
                model(x0, time)
        with session.edit(mask):
            made = [model(x0 + 3 * mask.to(device), time).sample.cpu() for time in times]
    return torch.stack(made), session.replayed_steps


@pytest.mark.parametrize("name", ["sige", "incremental"])
def test_steps_replayed_on_triton_equal_those_on_the_cpu(name):
    """With norms, projections and skips merged; where there is no GPU, on one that is pretended."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 5:] = True
    exact, _ = replayed("cpu", name, mask, "cpu")
    with gpu("triton") if DEVICE == "cpu" else contextlib.nullcontext():
        got, steps = replayed("triton", name, mask, "cuda")
    assert (steps, torch.allclose(got, exact, atol=1e-4)) == (1, True)
