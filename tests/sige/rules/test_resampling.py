"""Up-sampling and padding that wait for the operator behind them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A 3x3 convolution of stride 2, ``body(net, x)``, a 3x3 convolution."""

    def __init__(self, body):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.body = nn.Linear(8, 8), body

    def forward(self, x):
        return self.last(self.body(self, self.first(x)))


def net(body):
    return lambda: Net(body)


def mixed_behind_up_sampling(n, x):
    return n.mix(F.interpolate(x, scale_factor=2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def permuted_padding(n, x):
    return F.pad(x, (1, 0, 1, 0)).permute(0, 2, 3, 1).permute(0, 3, 1, 2)[..., 1:, 1:]


CASES = [
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=2.0, mode="nearest")), id="factor"),
    pytest.param(net(lambda n, x: F.interpolate(x, size=(32, 32))), id="size"),
    pytest.param(net(lambda n, x: F.interpolate(x, size=32)), id="one size"),
    pytest.param(net(lambda n, x: nn.Upsample(scale_factor=2)(x)), id="module"),
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="nearest-exact")), id="nearest-exact"),
    pytest.param(net(lambda n, x: F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=2)), id="twice"),
    pytest.param(net(lambda n, x: F.silu(F.interpolate(x, scale_factor=2)) * 2), id="pointwise behind"),
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=2) + F.interpolate(x * x, scale_factor=2)), id="sum"),
    pytest.param(net(lambda n, x: F.pad(F.pad(x, (1, 0)), (0, 1, 1, 1))), id="padding twice"),
    pytest.param(net(lambda n, x: F.pad(F.interpolate(x, scale_factor=2), (0, 1, 0, 1))), id="up-sampled and padded"),
]
# No rule: dense, and right.
DENSE = [
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=2, mode="bicubic")), "interpolate", id="bicubic"),
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=1.5)), "interpolate", id="fraction"),
    pytest.param(net(lambda n, x: F.interpolate(x, scale_factor=(2.0, 1.0))), "interpolate", id="one side"),
    pytest.param(net(lambda n, x: F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2)), "interpolate", id="padded"),
    pytest.param(net(lambda n, x: F.pad(x, (1, 1, 1, 1), mode="reflect")), "pad", id="reflection"),
    pytest.param(net(lambda n, x: F.pad(x, (1, 1, 1, 1), value=2.0)), "pad", id="padding with a value"),
    pytest.param(net(lambda n, x: F.pad(x, (-1, -1, 0, 0))), "pad", id="cropping"),
    pytest.param(net(mixed_behind_up_sampling), "", id="linear layer behind up-sampling"),
    pytest.param(net(permuted_padding), "", id="padding and permutation"),
]


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make, name", DENSE)
def test_full_mask_equals_the_dense_model_through_the_fall_back(trial, make, name):
    done = trial(make, batch=2)
    assert (done.error() < 1e-4, [name in found for found in done.effect.fallbacks][:1]) == (True, [True])


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@pytest.mark.parametrize("make", CASES + [pytest.param(*case.values[:1], id=case.id) for case in DENSE])
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    assert trial(make, mask="wide").error() < 1e-4


@pytest.mark.parametrize("make", [case.values[0] for case in CASES[:4]], ids=[case.id for case in CASES[:4]])
def test_up_sampling_costs_what_the_edit_covers(trial, make):
    done = trial(make, mask="small")
    assert 0 < done.effect.macs < done.effect.dense_macs / 2


def test_map_enlarged_by_the_model_itself_counts_as_up_sampling(trial):
    """Where the source level is dense, the convolution behind it is still an up-sampling one to the policy."""
    make = net(lambda n, x: F.interpolate(x, scale_factor=2))
    sparse, dense = (trial(make, mask="small", min_resolution=20, upsample_min_source=n) for n in (16, 17))
    assert (sparse.effect.macs < dense.effect.macs, bool(torch.isfinite(sparse.after).all())) == (True, True)
