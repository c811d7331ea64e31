"""Indexing, stacking, axes of size one and norms over features: positions stay where they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A 3x3 convolution, ``body(net, tokens (B, H*W, 8))``, and a 3x3 convolution again."""

    def __init__(self, body):
        super().__init__()
        self.first, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.gain = nn.Parameter(torch.rand(8))
        self.body = body
        self.register_buffer("angles", torch.randn(32 * 32, 4))

    def forward(self, x):
        x = self.first(x)
        tokens = self.body(self, x.flatten(2).transpose(1, 2))
        return self.last(F.silu(tokens.transpose(1, 2).reshape(x.shape)))


def net(body):
    return lambda: Net(body)


def rotary(n, t):
    """Rotary embedding as diffusers applies it to Flux's queries (B, L, heads, width)."""
    heads = t.unflatten(-1, (2, -1))
    cos, sin = n.angles.cos()[None, :, None, :], n.angles.sin()[None, :, None, :]
    real, imaginary = heads.reshape(*heads.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (heads.float() * cos + turned.float() * sin).to(heads.dtype).flatten(2, 3)


def rms_norm_written_out(n, t):
    variance = t.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return t * torch.rsqrt(variance + 1e-6) * n.gain


def adaptive(n, t):
    scale, shift = torch.tanh(n.gain[None]).expand(len(t), -1), n.gain[None].expand(len(t), -1)
    return F.layer_norm(t, (8,)) * (1 + scale[:, None]) + shift.unsqueeze(1)


def rotary_of_complex_numbers(n, t):
    """Rotary embedding as diffusers applies it to Qwen-Image's queries (B, L, heads, width)."""
    heads = torch.view_as_complex(t.float().contiguous().reshape(*t.shape[:-1], 2, 2, 2))
    turned = torch.view_as_real(heads * torch.polar(torch.ones_like(n.angles[:, :2]), n.angles[:, :2]).unsqueeze(1))
    return turned.flatten(2).type_as(t)


CASES = [
    pytest.param(net(rotary), id="rotary"),
    pytest.param(net(rotary_of_complex_numbers), id="rotary, complex numbers"),
    pytest.param(net(lambda n, t: t.softmax(-1)), id="softmax"),
    pytest.param(net(lambda n, t: F.softmax(t.view(*t.shape[:2], 2, 4), dim=2).flatten(2)), id="softmax over heads"),
    pytest.param(net(lambda n, t: t[..., :4].repeat_interleave(2, dim=-1)), id="repeated"),
    pytest.param(net(lambda n, t: t[..., :4].unsqueeze(2).repeat(1, 1, 2, 1).flatten(2)), id="several times over"),
    pytest.param(net(lambda n, t: t[:, :, None, :4].expand(-1, -1, 2, -1).flatten(2)), id="expanded"),
    pytest.param(net(lambda n, t: t[:, :, None, :4].expand((len(t), 1024, 2, 4)).flatten(2)), id="expanded to sizes"),
    pytest.param(net(lambda n, t: t + t.new_zeros(8) + t.new_full((1,), 2.0)), id="new tensors"),
    pytest.param(net(lambda n, t: t * torch.full_like(t, 0.5) + torch.ones_like(t)), id="tensors alike"),
    pytest.param(net(lambda n, t: torch.movedim(t.view(*t.shape[:2], 2, 4), 2, -1).flatten(2)), id="movedim"),
    pytest.param(net(lambda n, t: t.movedim((1, 2), (2, 1)).movedim(-1, 1)), id="movedim of positions"),
    pytest.param(net(lambda n, t: F.rms_norm(t, (8,), n.gain, 1e-6)), id="rms norm"),
    pytest.param(
        net(lambda n, t: F.rms_norm(t.view(*t.shape[:2], 2, 4).transpose(1, 2), (4,)).transpose(1, 2).flatten(2)),
        id="rms norm in heads",
    ),
    pytest.param(net(lambda n, t: nn.RMSNorm(8)(t)), id="rms norm module"),
    pytest.param(net(rms_norm_written_out), id="rms norm written out"),
    pytest.param(
        net(lambda n, t: F.layer_norm(t.view(*t.shape[:2], 2, 4).transpose(1, 2), (4,)).transpose(1, 2).flatten(2)),
        id="layer norm in heads",
    ),
    pytest.param(net(adaptive), id="adaptive layer norm"),
    pytest.param(net(lambda n, t: 3 * F.normalize(t, dim=-1)), id="length one"),
    pytest.param(
        net(lambda n, t: F.normalize(t.view(*t.shape[:2], 2, 4), 1.0, 2).flatten(2)), id="length one by heads"
    ),
    pytest.param(net(lambda n, t: F.normalize(t.transpose(1, 2)).transpose(1, 2)), id="length one over channels"),
    pytest.param(net(lambda n, t: F.pad(t, (1, 2), value=0.5)[..., 1:-2]), id="constants beside features"),
    pytest.param(net(lambda n, t: t.unsqueeze(1).squeeze(1)), id="additional dimension"),
    pytest.param(net(lambda n, t: t[:, :, None, :, None].squeeze((2, 4))), id="two dimensions of size one"),
    pytest.param(net(lambda n, t: t.squeeze(1)), id="nothing to squeeze"),
    pytest.param(net(lambda n, t: t[:, None, ..., None][..., 0][:, 0]), id="none and numbers"),
    pytest.param(net(lambda n, t: torch.cat([t[..., 4:], t[:, :, :4]], -1)), id="slices of features"),
    pytest.param(net(lambda n, t: torch.cat([t[..., ::2], t[..., 1::2]], -1)), id="every second feature"),
    pytest.param(net(lambda n, t: t[..., :]), id="all of it"),
    pytest.param(net(lambda n, t: torch.stack(t.unbind(-1)[::-1], -1)), id="unbind and stack"),
    pytest.param(net(lambda n, t: torch.stack([t, 2 * t], 2).sum(2)), id="stack and sum"),
    pytest.param(net(lambda n, t: torch.stack([t, t.exp()], -1).mean(dim=-1)), id="mean"),
    pytest.param(net(lambda n, t: t.unflatten(2, (2, -1)).flatten(-2)), id="unflatten"),
    pytest.param(net(lambda n, t: torch.cat([t.narrow(-1, 3, 5), t.narrow(2, 0, 3)], 2)), id="narrow"),
    pytest.param(
        net(lambda n, t: torch.cat([t.view(*t.shape[:2], 2, 4).select(2, i) for i in (1, 0)], -1)), id="select"
    ),
    pytest.param(net(lambda n, t: t.clip(-0.5, 0.5) + t.pow(2) + t**3), id="clip and powers"),
]
DENSE = [
    pytest.param(net(lambda n, t: F.normalize(t, dim=1)), "normalize", id="length one over positions"),
    pytest.param(
        net(lambda n, t: t - t.mean(1, keepdim=True, dtype=torch.float32)), "mean", id="mean in a named dtype"
    ),
    pytest.param(net(lambda n, t: t - t.mean()), "mean", id="mean of everything"),
    pytest.param(net(lambda n, t: torch.stack(t.unbind(1), 1)), "unbind", id="unbound positions"),
    pytest.param(net(lambda n, t: t.repeat(1, 2, 1)[:, :1024]), "repeat", id="positions twice"),
    pytest.param(net(lambda n, t: t.expand(2, *t.shape)[1]), "expand", id="one more axis"),
    pytest.param(net(lambda n, t: torch.stack([t[i] for i in range(len(t))])), "__getitem__", id="sample by sample"),
    pytest.param(net(lambda n, t: t[:, torch.arange(1024)]), "__getitem__", id="chosen positions"),
    pytest.param(net(lambda n, t: t + t.select(1, 3)[:, None]), "select", id="one position"),
    pytest.param(
        net(lambda n, t: torch.stack([t, torch.zeros(t.shape)], 2)[:, :, 0]), "stack", id="stacked with zeros"
    ),
]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, batch):
    done = trial(make, batch=batch)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide", batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make, name", DENSE)
def test_operators_on_positions_run_dense_and_are_named(trial, make, name):
    done = trial(make, batch=2)
    assert (done.error() < 1e-4, any(name in found for found in done.effect.fallbacks)) == (True, True)


@pytest.mark.parametrize("make", [*CASES, *[pytest.param(case.values[0], id=case.id) for case in DENSE]])
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5
