"""Pointwise operators, broadcasting, in-place writes, dropout and layer norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A 3x3 convolution, ``body(net, x)``, and a 3x3 convolution again."""

    def __init__(self, body):
        super().__init__()
        self.first, self.side, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.norm, self.relu, self.dropout = nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.slope, self.clip = nn.LeakyReLU(0.2, inplace=True), nn.ReLU6(inplace=True)
        generator = torch.Generator().manual_seed(3)
        for name, shape in {
            "channel": (8, 1, 1), "channels": (1, 8, 1, 1), "samples": (2, 8, 1, 1), "places": (1, 1, 32, 32),
            "place": (32, 32), "whole": (2, 8, 32, 32), "single": (1, 1, 1, 1), "one": (1,), "zero": (),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.rand(shape, generator=generator) + 0.5)
        self.body = body

    def forward(self, x):
        return self.last(self.body(self, self.first(x)))


def net(body):
    return lambda: Net(body)


def with_broadcast(name, operator):
    return net(
        lambda n, x: operator(x, getattr(n, name)[: len(x)] if getattr(n, name).dim() == 4 else getattr(n, name))
    )


def in_place_chain(n, x):
    x = n.side(x)
    x += 1
    x.mul_(2).sub_(n.channel)
    x /= 3
    return x


def in_place_after_a_layer_remembered_it(n, x):
    y = n.side(x)
    n.relu(x)
    return x + y


def leaky_in_place_after_a_layer_remembered_it(n, x):
    y = n.side(x)
    n.slope(x)
    return x + y


def relu6_in_place(n, x):
    y = n.side(x)
    n.clip(x)
    return x + y


def plain_plus_active(n, x):
    total = torch.zeros_like(n.whole[: len(x)])
    total += x
    return total


def active_written_into_plain(n, x):
    total = torch.ones_like(n.whole[: len(x)])
    total.add_(x)
    return total


def pad_then(function):
    return net(lambda n, x: F.conv2d(function(F.pad(x, (1, 1, 1, 1))), n.side.weight))


def two_maps(operator):
    return net(lambda n, x: operator(x, n.side(x)))


CASES = [
    pytest.param(net(lambda n, x: F.silu(x)), id="silu"),
    pytest.param(net(lambda n, x: torch.sigmoid(x)), id="sigmoid"),
    pytest.param(net(lambda n, x: F.gelu(x, approximate="tanh")), id="gelu"),
    pytest.param(net(lambda n, x: x.clamp(-0.2, 0.3)), id="clamp"),
    pytest.param(net(lambda n, x: -x.square().exp()), id="methods"),
    pytest.param(net(lambda n, x: torch.clamp(x, max=n.zero)), id="clamp by a scalar tensor"),
    pytest.param(net(lambda n, x: (x.to(torch.float64) * 2).float()), id="dtype and back"),
    pytest.param(net(lambda n, x: x.contiguous().clone().detach()), id="copies"),
    pytest.param(net(lambda n, x: n.dropout(x)), id="dropout in eval"),
    pytest.param(net(lambda n, x: 2 * x + 1 - x / 3), id="numbers"),
    pytest.param(net(lambda n, x: 1 - x), id="number first"),
    pytest.param(net(lambda n, x: torch.sub(x, x * x, alpha=0.5)), id="alpha"),
    *(
        pytest.param(with_broadcast(name, operator), id=f"{word} {name}")
        for name in ("channel", "channels", "samples", "places", "place", "whole", "single", "one", "zero")
        for word, operator in (("plus", torch.add), ("divided by", torch.div))
    ),
    pytest.param(net(lambda n, x: n.channel - x), id="tensor first"),
    pytest.param(two_maps(torch.add), id="sum of two maps"),
    pytest.param(two_maps(torch.mul), id="product of two maps"),
    pytest.param(two_maps(torch.maximum), id="larger of two maps"),
    pytest.param(
        net(lambda n, x: x * torch.sigmoid(F.conv2d(x, n.side.weight[:1], padding=1))), id="gate of one channel"
    ),
    pytest.param(net(in_place_chain), id="in-place chain"),
    pytest.param(net(in_place_after_a_layer_remembered_it), id="in-place relu of a remembered map"),
    pytest.param(net(leaky_in_place_after_a_layer_remembered_it), id="in-place leaky relu of a remembered map"),
    pytest.param(net(relu6_in_place), id="in-place relu6 of a remembered map"),
    pytest.param(net(lambda n, x: n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), id="layer norm, channels last"),
    pytest.param(
        net(lambda n, x: n.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)), id="layer norm, tokens"
    ),
    pytest.param(pad_then(F.silu), id="silu of a padded map"),
    pytest.param(pad_then(lambda x: x * 2), id="padded map times a number"),
]
# Right, though through the fall-back.
DENSE = [
    pytest.param(pad_then(torch.sigmoid), id="sigmoid of a padded map"),
    pytest.param(pad_then(lambda x: x + 1), id="padded map plus a number"),
    pytest.param(net(plain_plus_active), id="plain += active"),
    pytest.param(net(active_written_into_plain), id="active map written into a plain one"),
    pytest.param(net(lambda n, x: torch.clamp(x, max=n.channels)), id="clamp by a map, by keyword"),
    pytest.param(net(lambda n, x: torch.pow(x, n.channels.round())), id="power by a map"),
    pytest.param(net(lambda n, x: F.silu(input=x)), id="by keyword"),
    pytest.param(net(lambda n, x: torch.add(input=x, other=x)), id="both by keyword"),
]
GEOMETRIES = pytest.mark.parametrize("geometry", ["level", "window"])


@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", DENSE)
def test_full_mask_equals_the_dense_model_through_the_fall_back(trial, make):
    assert trial(make, batch=2).error() < 1e-4


@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@GEOMETRIES
@pytest.mark.parametrize("make", CASES + DENSE)
def test_unchanged_input_returns_the_recording(trial, make, geometry):
    done = trial(make, geometry, "same")
    assert (done.after - done.before).abs().max() < 1e-5 * done.before.abs().max()


@pytest.mark.parametrize("make", CASES + DENSE)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    assert trial(make, mask="wide").error() < 1e-4


@pytest.mark.parametrize("make", [case for case in CASES if "samples" in case.id or "in-place" in case.id])
def test_batch_with_different_masks_equals_the_dense_model(trial, make):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:15, 4:9] = True
    assert trial(make, mask=masks, batch=2, dilation=7).error() < 1e-4


class Shortcut(nn.Module):
    """The 1x1 branch is written to in place: under window tiles its set is another than the 3x3 branch's."""

    def __init__(self):
        super().__init__()
        self.main, self.short = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        total = self.short(x)
        total.add_(self.main(x))
        return total


@GEOMETRIES
def test_in_place_sum_over_different_sets(trial, geometry):
    done = trial(Shortcut, geometry, "small", dilation=3)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@GEOMETRIES
def test_in_place_sum_over_different_sets_can_be_undone(trial, geometry):
    done = trial(Shortcut, geometry, "same")
    entries = done.session._steps[0].entries
    before = {key: [x.clone() for x in entry.tensors()] for key, entry in entries.items()}
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[9:14, 10:17] = True
    with done.session.edit(mask):
        done.session.model(torch.where(mask, done.original + 1, done.original))
    done.session.undo()
    assert all(torch.equal(x, y) for key, entry in entries.items() for x, y in zip(entry.tensors(), before[key]))


class Scaled(nn.Module):
    """A map scaled between two convolutions that read it."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.scale = scale

    def forward(self, x):
        x = self.first(x)
        return self.second(x) + self.second(self.scale(x))


BY_ONE = [
    pytest.param(lambda x: x * 1, 1, id="times 1"),
    pytest.param(lambda x: x * 1.0, 1, id="times 1.0"),
    pytest.param(lambda x: x / 1.0, 1, id="divided by 1.0"),
    pytest.param(lambda x: torch.div(x, 1), 1, id="torch.div"),
    pytest.param(lambda x: x.mul(True), 1, id="times True"),
    pytest.param(lambda x: x * 2, 2, id="times 2"),
    pytest.param(lambda x: x + 1, 2, id="plus 1"),
    pytest.param(lambda x: 1 / (x.abs() + 1), 2, id="1 divided by it"),
    pytest.param(lambda x: torch.div(x, 1, rounding_mode="floor"), 2, id="rounded"),
]


@pytest.mark.parametrize("scale, maps", BY_ONE)
def test_scaling_by_one_is_remembered_once(trial, scale, maps):
    done = trial(lambda: Scaled(scale), mask="small")
    own = sum(e.value.nbytes for e in done.session._steps[0].entries.values() if e.kind == "conv_input")
    assert own == maps * 8 * 32 * 32 * 4


@pytest.mark.parametrize("scale, maps", BY_ONE)
def test_scaling_under_a_full_mask_equals_the_dense_model(trial, scale, maps):
    done = trial(lambda: Scaled(scale))
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])
