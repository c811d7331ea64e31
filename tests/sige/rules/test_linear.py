"""Linear layers on tokens and on channels-last maps, and plain matrix products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige.macs import MacCounter


class Net(nn.Module):
    """A 3x3 convolution, then ``body(net, x)``."""

    def __init__(self, body):
        super().__init__()
        self.first, self.mix, self.narrow = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 16),
            nn.Linear(16, 8, bias=False),
        )
        self.time, self.body = nn.Linear(4, 8), body
        self.register_buffer("step", torch.randn(2, 4))

    def forward(self, x):
        return self.body(self, self.first(x))


def net(body):
    return lambda: Net(body)


def tokens(n, x):
    return n.narrow(F.gelu(n.mix(x.flatten(2).transpose(1, 2)))).transpose(1, 2).view(x.shape)


def channels_last(n, x):
    return n.narrow(n.mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def time_added(n, x):
    return x + n.time(n.step[: len(x)])[:, :, None, None]


def over_positions(n, x):
    weight = n.mix.weight.new_ones(32, 32) / 32
    return F.linear(x, weight)


def product(n, x):
    seen = x.flatten(2)
    return (torch.matmul(n.mix.weight[:8], seen)).view(x.shape)


CASES = [
    pytest.param(net(tokens), id="tokens"),
    pytest.param(net(channels_last), id="channels last"),
    pytest.param(net(time_added), id="time embedding"),
    pytest.param(net(product), id="matmul"),
]
DENSE = [pytest.param(net(over_positions), id="over positions")]


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("geometry", ["level", "window"])
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", DENSE)
def test_full_mask_equals_the_dense_model_through_the_fall_back(trial, make):
    done = trial(make)
    assert (done.error() < 1e-4, len(done.effect.fallbacks)) == (True, 1)


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("geometry", ["level", "window"])
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@pytest.mark.parametrize("make", CASES + DENSE)
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    assert trial(make, mask="wide").error() < 1e-4


@pytest.mark.parametrize("mask", ["full", "small"])
@pytest.mark.parametrize("make", CASES + DENSE)
def test_products_are_those_that_ran(trial, make, mask):
    with MacCounter() as counter:
        done = trial(make, mask=mask)
    assert counter.count.total == done.effect.macs + 2 * done.effect.dense_macs


@pytest.mark.parametrize("make", CASES[:2])
def test_layer_costs_its_active_rows(trial, make):
    done = trial(make, mask="small")
    assert done.effect.sparse_macs_by_kind["linear"] == int(done.effect.active.sum()) * 2 * 8 * 16


@pytest.mark.parametrize("make", CASES)
def test_autocast_gives_the_models_own_dtypes(trial, make):
    with torch.autocast("cpu", torch.bfloat16):
        done = trial(make)
    assert (done.after.dtype, done.error() < 2e-2) == (done.dense.dtype, True)
