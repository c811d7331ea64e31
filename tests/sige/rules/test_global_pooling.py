"""Sums and means over all positions: those of the edited map, at the cost of the edited rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 32


class Net(nn.Module):
    """1x1 convolutions around ``body(net, map)``, so that an edit changes the map inside its mask only: it can be exact there."""

    def __init__(self, body):
        super().__init__()
        self.first, self.last, self.body = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1), body
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))

    def forward(self, x):
        return self.last(self.body(self, self.first(x)))


def excited(net, x):
    return x * net.squeeze(x).sigmoid()


def by_tokens(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    return (tokens - tokens.mean(1, keepdim=True)).transpose(1, 2).view(x.shape)


def by_heads(net, x):
    tokens = x.view(len(x), 4, 4, -1)
    return (tokens * tokens.sum(-1, keepdim=True).tanh()).view(x.shape)


SPELLINGS = {
    "squeeze and excitation": excited,
    "mean of both sides": lambda net, x: x + x.mean((2, 3), keepdim=True),
    "mean without its sides": lambda net, x: x + x.mean(dim=[-1, -2])[:, :, None, None],
    "sum": lambda net, x: x * torch.sum(x, (2, 3), keepdim=True),
    "length": lambda net, x: x * torch.norm(x, p=2, dim=(2, 3), keepdim=True),
    "length of channels last": lambda net, x: (
        (y := x.permute(0, 2, 3, 1)).mul(y.norm(dim=(1, 2), keepdim=True)).permute(0, 3, 1, 2)
    ),
    "length of vectors": lambda net, x: x * torch.linalg.vector_norm(x, 2, (-2, -1), True),
    "tokens": by_tokens,
    "heads": by_heads,
    "functional": lambda net, x: x - F.adaptive_avg_pool2d(x, (1, 1)),
}
SPELLINGS = [pytest.param(lambda body=body: Net(body), id=name) for name, body in SPELLINGS.items()]


@pytest.mark.parametrize("make", SPELLINGS)
def test_full_mask_equals_the_dense_model(trial, make):
    assert trial(make, batch=2).error() < 1e-6


@pytest.mark.parametrize("make", SPELLINGS)
def test_active_positions_see_the_sums_of_the_whole_edited_map(trial, make):
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, 9:14, 10:17] = mask[1, 20:30, 3:9] = True
    done = trial(make, mask=mask, batch=2, dilation=0)
    active = done.effect.active[:, None].expand_as(done.after)
    error = (done.after - done.dense)[active].norm() / done.dense[active].norm()
    assert (error.item() < 1e-6, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("make", SPELLINGS)
def test_sums_follow_edits_that_stay_and_edits_that_go(edits_in_a_row, make, replay):
    assert edits_in_a_row(make, replay=replay)[1] < 1e-6


@pytest.mark.parametrize("make", SPELLINGS)
def test_sums_of_maps_in_other_tiers_are_the_same_bits(edits_in_a_row, make, tmp_path):
    found, expected = edits_in_a_row(make, memory_budget=100_000, state_folder=tmp_path)[0], edits_in_a_row(make)[0]
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 3


def other_sizes(net, x):
    return x + F.interpolate(F.adaptive_avg_pool2d(x, 2), x.shape[2:])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(other_sizes, id="a pooled map of more than one position"),
        pytest.param(lambda net, x: x + x.mean(2, keepdim=True), id="rows alone"),
        pytest.param(lambda net, x: x + x.mean((1, 2, 3), keepdim=True), id="features too"),
        pytest.param(lambda net, x: x + x.norm(1, (2, 3), keepdim=True), id="sum of absolute values"),
    ],
)
def test_anything_else_runs_dense_and_is_named(trial, body):
    done = trial(lambda: Net(body))
    assert (done.error() < 1e-6, len(done.effect.fallbacks)) == (True, 1)
