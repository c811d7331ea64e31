"""Transposed convolutions: each output position from the taps that reach it."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige import macs
from sige.rules.transposed import Transposed, phase_weights

SIDE = 32


class Net(nn.Module):
    """A 3x3 convolution, a transposed one of the given geometry, a 3x3 convolution. ``behind`` runs in front of the second."""

    def __init__(self, *args, behind=lambda x: x, **kwargs):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
        self.behind, self.second = behind, nn.ConvTranspose2d(8, 12, *args, **kwargs)

    def forward(self, x):
        return self.last(self.second(self.behind(self.first(x))))


def net(*args, **kwargs):
    return lambda: Net(*args, **kwargs)


CASES = [
    pytest.param(net(4, 2, 1), id="4x4 stride 2"),
    pytest.param(net(4, 2, 1, bias=False), id="4x4 stride 2 without bias"),
    pytest.param(net(3, 2, 1, output_padding=1), id="3x3 stride 2, output padded"),
    pytest.param(net(2, 2), id="2x2 stride 2"),
    pytest.param(net(3, 1, 1), id="3x3 stride 1"),
    pytest.param(net(5, 4, 1, output_padding=1), id="5x5 stride 4"),
    pytest.param(net(1, 2, output_padding=1), id="1x1 stride 2: phases of bias alone"),
    pytest.param(net(1, 2, output_padding=1, bias=False), id="1x1 stride 2 without bias"),
    pytest.param(net((4, 3), (2, 1), (1, 1)), id="4x3, strides 2 and 1"),
    pytest.param(net(4, 2, 1, groups=4), id="groups"),
    pytest.param(net(4, 2, 1, behind=lambda x: F.interpolate(x, scale_factor=2)), id="behind nearest up-sampling"),
    pytest.param(net(4, 2, 1, behind=lambda x: F.silu(F.avg_pool2d(x, 2))), id="behind pooling"),
]
PLACES = pytest.mark.parametrize("geometry", ["level", "window"])


@PLACES
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry)
    assert (done.error() < 1e-5, done.effect.fallbacks) == (True, [])


@PLACES
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    done = trial(make, geometry, "small")
    assert (done.same_outside(), done.effect.fallbacks) == (True, [])


@PLACES
@pytest.mark.parametrize("make", CASES)
def test_unchanged_input_returns_the_recording(trial, make, geometry):
    done = trial(make, geometry, "same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide")
    assert (done.error() < 1e-5, bool(done.effect.active.all())) == (True, False)


@pytest.mark.parametrize("make", CASES)
def test_batch_with_different_masks_equals_the_dense_model(trial, make):
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:15, 4:9] = True
    assert trial(make, mask=masks, batch=2, dilation=7).error() < 1e-5


@pytest.mark.parametrize("padding", [0, 2], ids=["an output with a rim", "an output cut short"])
def test_output_that_is_no_multiple_of_the_input_under_a_full_mask(trial, padding):
    done = trial(net(4, 2, padding), block=2)
    assert (done.error() < 1e-5, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", CASES)
def test_what_ran_is_what_was_counted(trial, make):
    done = trial(make, mask="small")
    with macs.MacCounter() as counter, done.session.edit(_small()) as effect:
        done.session.model(done.edited)
    assert (effect.macs, counter.count.unlisted) == (counter.count.total, [])


def _small():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[9:14, 10:17] = True
    return mask


@pytest.mark.parametrize("make", CASES)
def test_the_recording_counts_what_the_dense_model_costs(trial, make):
    done = trial(make, mask="small")
    assert done.effect.dense_macs == macs.count(done.session.model, done.original).total


@pytest.mark.parametrize(
    "args, taps", [((4, 2, 1), 4), ((2, 2), 1), ((3, 1, 1), 9)], ids=["4x4 stride 2", "2x2 stride 2", "3x3 stride 1"]
)
def test_each_output_position_costs_the_taps_of_its_phase(policy, args, taps):
    torch.manual_seed(0)
    module, x = nn.ConvTranspose2d(8, 12, *args), torch.randn(1, 8, SIDE, SIDE)
    session = sige.Session(module, policy("level", dilation=0))
    with session.record():
        module(x)
    with session.edit(_small()) as effect:
        module(x)
    assert effect.macs == int(effect.active.sum()) * taps * 8 * 12


@pytest.mark.parametrize(
    "changes, sparse",
    [
        pytest.param({}, True, id="sparse"),
        pytest.param({"dense_modules": ("second",)}, False, id="module named dense"),
        pytest.param({"upsample_min_source": 33}, False, id="source below the least"),
        pytest.param({"dense_above": 0.02}, False, id="coverage above the dense share"),
    ],
)
def test_what_the_policy_keeps_dense_costs_what_the_dense_model_does(policy, changes, sparse):
    torch.manual_seed(0)
    module = nn.Sequential()
    module.first, module.second = nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 12, 4, 2, 1)
    module.forward = lambda x: module.second(module.first(x))
    x = torch.randn(1, 8, SIDE, SIDE)
    other = torch.where(_small(), x + 1, x)
    session = sige.Session(module, dataclasses.replace(policy("level", dilation=0), **changes))
    with session.record():
        module(x)
    with session.edit(_small()) as effect:
        after = module(other)
    with torch.no_grad():
        expected = module(other)
    dense = macs.count(module.second, x).total
    cost = effect.macs >= dense
    assert (cost, effect.fallbacks, (after - expected)[..., 24:26, 26:28].abs().max() < 1e-5) == (not sparse, [], True)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(net(3, 2, 2, 1, 1, True, 2), id="dilation"),
        pytest.param(net(4, 2, 1, behind=lambda x: F.pad(x, (1, 0, 0, 1))), id="behind padding"),
    ],
)
def test_what_has_no_rule_is_right_and_named(trial, make):
    done = trial(make)
    named = [name.endswith("conv_transpose2d at second") for name in done.effect.fallbacks]
    assert (done.error() < 1e-5, named) == (True, [True])


def test_one_image_without_a_batch_is_the_plain_operator(policy):
    module, x = nn.ConvTranspose2d(8, 12, 4, 2, 1), torch.randn(8, SIDE, SIDE)
    model = nn.Module()
    model.inner, model.forward = module, lambda image: module(image[0])[None]
    session = sige.Session(model, policy("level"))
    with session.record():
        before = model(x[None])
    with torch.no_grad():
        assert torch.equal(before, module(x)[None])


def test_the_input_map_is_remembered_once_for_two_convolutions(policy):
    torch.manual_seed(0)
    model = nn.Module()
    model.first, model.up = nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 4, 2, 1)
    model.beside = nn.Conv2d(8, 8, 3, padding=1)

    def forward(x):
        x = model.first(x)
        return model.up(x), model.beside(x)

    model.forward = forward
    session = sige.Session(model, policy("level"))
    with session.record():
        model(torch.randn(1, 8, SIDE, SIDE))
    assert session.state_bytes()["conv_input"] == 8 * SIDE * SIDE * 4


def test_undo_restores_the_input_map(trial):
    done = trial(CASES[0].values[0], mask="small")
    done.session.undo()
    with done.session.edit(_small()):
        again = done.session.model(done.edited)
    assert torch.equal(again, done.after)


def test_remembered_maps_may_be_narrower_than_the_weights(trial):
    done = trial(CASES[0].values[0], mask="wide", state_dtype=torch.bfloat16)
    assert (done.after.dtype, 0 < done.error() < 1e-2) == (torch.float32, True)


def test_autocast_computes_in_its_dtype(policy):
    torch.manual_seed(0)
    model, x = Net(4, 2, 1), torch.randn(1, 8, SIDE, SIDE)
    session = sige.Session(model, policy("level", dilation=7))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with session.record():
            before = model(x)
        with session.edit(_small()):
            after = model(torch.where(_small(), x + 1, x))
        expected = model(torch.where(_small(), x + 1, x))
    assert (before.dtype, after.dtype, (after - expected).abs().max() < 0.05) == (*[torch.bfloat16] * 2, True)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel, stride", [(4, 2), (3, 2), (2, 2), (1, 2), (3, 1), (5, 4)])
def test_phases_share_the_weight_out(kernel, stride, groups):
    geometry = Transposed((4, 4), (8, 8), (kernel, kernel), (stride, stride), (0, 0))
    weight = torch.randn(8, 3, kernel, kernel)
    parts = phase_weights(weight, weight.dtype, groups, geometry)
    sizes = [(3 * groups, 8 // groups, *taps) for _, _, taps in geometry.phases()]
    total = sum(part.sum() for part in parts)
    assert ([tuple(part.shape) for part in parts], math.isclose(total, weight.sum(), abs_tol=1e-4)) == (sizes, True)


def test_phases_are_made_once_a_weight():
    geometry, weight = Transposed((4, 4), (8, 8), (4, 4), (2, 2), (1, 1)), torch.randn(8, 3, 4, 4)
    assert phase_weights(weight, weight.dtype, 1, geometry) is phase_weights(weight, weight.dtype, 1, geometry)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda weight: weight.mul_(2), id="in place"),
        pytest.param(lambda weight: setattr(weight, "data", weight.data * 2), id="new data"),
    ],
)
def test_phases_follow_a_changed_weight(change):
    geometry, weight = Transposed((4, 4), (8, 8), (4, 4), (2, 2), (1, 1)), nn.Parameter(torch.randn(8, 3, 4, 4))
    before = phase_weights(weight, weight.dtype, 1, geometry)
    with torch.no_grad():
        change(weight)
    after = phase_weights(weight, weight.dtype, 1, geometry)
    assert all(torch.equal(new, 2 * old) for new, old in zip(after, before))
