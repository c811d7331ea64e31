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


# -- pooling and bilinear up-sampling at the level's own set --


class Around(nn.Module):
    """A 3x3 convolution, ``body(net, x)`` and a 3x3 convolution, all from 32x32; ``body`` gets the model's input as well."""

    def __init__(self, body, stride=1):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1, stride=stride), nn.Conv2d(8, 8, 3, padding=1)
        self.gamma, self.beta, self.body = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), body

    def forward(self, x):
        return self.last(self.body(self, self.first(x), x))


def around(body, stride=1):
    return lambda: Around(body, stride)


def modulated(side):
    """Modulation by convolutions of the model's input brought to ``side``, as SPADE does."""

    def body(net, y, x):
        y = F.interpolate(y, size=(side, side))
        labels = F.interpolate(x, size=y.shape[2:], mode="nearest")
        return y * (1 + net.gamma(labels)) + net.beta(labels)

    return body


def met(net, y, x):
    """Outstanding up-sampling met by maps of the finer level."""
    up = F.interpolate(y, scale_factor=2)
    return up * (1 + net.gamma(x)) + net.beta(x)


LEVELLED = [
    pytest.param(around(lambda n, y, x: F.avg_pool2d(y, 2)), id="average of 2x2"),
    pytest.param(around(lambda n, y, x: F.avg_pool2d(y, 4, 4)), id="average of 4x4"),
    pytest.param(around(lambda n, y, x: F.avg_pool2d(y, (2, 4))), id="average of 2x4"),
    pytest.param(around(lambda n, y, x: nn.AvgPool2d(2, 2)(y)), id="average, module"),
    pytest.param(around(lambda n, y, x: F.max_pool2d(y, 2)), id="maximum of 2x2"),
    pytest.param(around(lambda n, y, x: nn.MaxPool2d(2)(y)), id="maximum, module"),
    pytest.param(around(lambda n, y, x: F.avg_pool2d(y, 3, 1, 1)), id="average with overlap"),
    pytest.param(
        around(lambda n, y, x: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)), id="average without padding"
    ),
    pytest.param(around(lambda n, y, x: F.max_pool2d(y, 3, 2, 1)), id="maximum with overlap"),
    pytest.param(
        around(lambda n, y, x: F.max_pool2d(-y.abs(), 3, 1, 1)), id="maximum of negative values at the border"
    ),
    pytest.param(around(lambda n, y, x: F.max_pool2d(y, 2, 2, ceil_mode=True)), id="maximum, nothing hangs over"),
    pytest.param(around(lambda n, y, x: F.max_pool2d(y, 3, 1, 1, dilation=2)), id="maximum, dilated"),
    pytest.param(
        around(lambda n, y, x: F.interpolate(y, scale_factor=2, mode="bilinear"), 2), id="bilinear up-sampling"
    ),
    pytest.param(around(lambda n, y, x: F.interpolate(y, size=(64, 64), mode="bilinear"), 2), id="bilinear by 4"),
    pytest.param(
        around(lambda n, y, x: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2, mode="bilinear") + y), id="down and up"
    ),
    pytest.param(around(modulated(16), 2), id="label map of half the sides"),
    pytest.param(around(modulated(32), 2), id="label map of the level's own"),
    pytest.param(around(modulated(8), 4), id="label map of a quarter"),
    pytest.param(around(met, 2), id="up-sampling met by the finer level"),
    pytest.param(around(lambda n, y, x: n.beta(x) - F.interpolate(y, scale_factor=2), 2), id="the other way round"),
    pytest.param(around(lambda n, y, x: F.interpolate(y, scale_factor=4) * n.gamma(x), 4), id="up-sampling by 4, met"),
    pytest.param(
        around(lambda n, y, x: F.interpolate(y, scale_factor=2) * torch.linspace(0, 1, 32), 2), id="met by a plain map"
    ),
]
PLACES = pytest.mark.parametrize("geometry", ["level", "window", "tile"])


@PLACES
@pytest.mark.parametrize("make", LEVELLED)
def test_levels_under_a_full_mask_equal_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@PLACES
@pytest.mark.parametrize("make", LEVELLED)
def test_levels_leave_the_rest_alone(trial, make, geometry):
    done = trial(make, geometry, "small", block=2, dilation=0)
    assert (done.same_outside(), done.effect.fallbacks) == (True, [])


@PLACES
@pytest.mark.parametrize("make", LEVELLED)
def test_levels_of_an_unchanged_input_are_the_recordings(trial, make, geometry):
    done = trial(make, geometry, "same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", LEVELLED)
def test_levels_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide")
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-4


@pytest.mark.parametrize("make", LEVELLED)
def test_batch_with_different_masks_is_each_samples_own(trial, make):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:15, 4:9] = True
    done = trial(make, mask=masks, batch=2, dilation=7)
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-4


@pytest.mark.parametrize("make", LEVELLED)
def test_levels_below_the_minimum_run_dense(trial, make):
    done = trial(make, min_resolution=33, upsample_min_source=33)
    assert (done.error() < 1e-4, done.effect.macs) == (True, done.effect.dense_macs)


@pytest.mark.parametrize("make", LEVELLED)
def test_undo_restores_the_resampled_maps(trial, make):
    done = trial(make, mask="small")
    done.session.undo()
    area = torch.zeros(32, 32, dtype=torch.bool)
    area[9:14, 10:17] = True
    with done.session.edit(area):
        again = done.session.model(done.edited)
    assert torch.equal(again, done.after)


def test_a_label_map_is_cut_once_for_all_layers_of_a_level(trial, monkeypatch):
    from sige.rules import resampling

    cuts = []
    for name in ("full_rows", "rows_of_map"):  # in the recording, in the edit
        real = getattr(resampling, name)
        monkeypatch.setattr(resampling, name, lambda *args, name=name, real=real: cuts.append(name) or real(*args))
    twice = around(lambda n, y, x: modulated(16)(n, modulated(16)(n, y, x), x), 2)
    trial(twice, mask="small")
    assert cuts == ["full_rows", "rows_of_map"]


# Pooling without a rule: dense, and right.
POOLED = [
    pytest.param(lambda y: F.avg_pool2d(y, 2, 2, divisor_override=3), "avg_pool2d", id="average by another divisor"),
    pytest.param(lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True), "avg_pool2d", id="average that hangs over"),
    pytest.param(lambda y: F.max_pool2d(y, 5, ceil_mode=True), "max_pool2d", id="maximum that hangs over"),
    pytest.param(lambda y: F.max_pool2d(y, 2, return_indices=True)[0], "max_pool2d", id="maximum, with places"),
    pytest.param(
        lambda y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True), "interpolate", id="corners"
    ),
    pytest.param(lambda y: F.interpolate(y, scale_factor=0.5, mode="bilinear"), "interpolate", id="bilinear, down"),
    pytest.param(lambda y: F.interpolate(y, scale_factor=0.5), "interpolate", id="nearest, down"),
]


@pytest.mark.parametrize("pool, name", POOLED)
def test_resampling_without_a_rule_is_right_and_named(trial, pool, name):
    done = trial(around(lambda n, y, x: pool(y)), batch=2)
    assert (done.error() < 1e-4, [name in entry for entry in done.effect.fallbacks]) == (True, [True])
