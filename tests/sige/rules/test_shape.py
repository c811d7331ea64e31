"""Views, transposes, splits and concatenation, between convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige.errors import ModelError
from sige.macs import MacCounter


class Net(nn.Module):
    """A 3x3 convolution, ``body(net, x)``, and a 3x3 convolution again."""

    def __init__(self, body):
        super().__init__()
        self.first, self.side, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.down, self.body = nn.Conv2d(8, 8, 2, stride=2), body
        self.register_buffer("plain", torch.randn(2, 8, 32, 32))

    def forward(self, x):
        x = self.body(self, self.first(x))
        return self.last(F.silu(x))


def net(body):
    return lambda: Net(body)


def shuffled(n, x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def heads_and_back(n, x):
    b, c, h, w = x.shape
    tokens = x.flatten(2).permute(0, 2, 1).reshape(b, h * w, 2, c // 2).permute(0, 2, 1, 3)
    return tokens.transpose(1, 2).reshape(b, h * w, c).permute(0, 2, 1).reshape(b, c, h, w)


def halves(n, x):
    first, second = x.chunk(2, dim=1)
    return torch.cat([second, first * 2], 1)


def unequal_parts(n, x):
    first, second, third = torch.split(x, [1, 5, 2], dim=-3)
    return torch.cat([third, second, first], -3)


def split_features_of_tokens(n, x):
    first, second = x.flatten(2).transpose(1, 2).split(4, dim=-1)
    return torch.cat([second, first], 2).transpose(1, 2).view(x.shape)


def one_channel_each(n, x):
    return torch.cat(x.split(1, 1)[::-1], 1)


def skip(n, x):
    skip = torch.cat([x, n.side(x)], dim=1)
    first, second = skip.chunk(2, 1)
    return first + second


def plain_behind(n, x):
    first, second = torch.cat([x, n.plain[: len(x)]], dim=1).chunk(2, 1)
    return first * second


def positions_named_by_minus_one(n, x):
    return x.reshape(len(x), 8, -1).view(*x.shape[:2], 32, 32)


CASES = [
    pytest.param(net(shuffled), id="channels shuffled"),
    pytest.param(net(heads_and_back), id="heads and back"),
    pytest.param(net(positions_named_by_minus_one), id="minus one"),
    pytest.param(net(lambda n, x: x.view(x.shape)), id="same shape"),
    pytest.param(
        net(lambda n, x: torch.reshape(x, (len(x), 2, 4, 32 * 32)).flatten(1, 2).view(x.shape)), id="flatten features"
    ),
    pytest.param(net(lambda n, x: x.transpose(1, -1).transpose(-1, 1)), id="negative dimensions"),
    pytest.param(net(lambda n, x: torch.permute(x, (0, 2, 3, 1)).permute(0, -1, 1, 2)), id="permutation and back"),
    pytest.param(
        net(lambda n, x: n.side(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))), id="channels-last copy"
    ),
    pytest.param(net(lambda n, x: torch.cat(x.split(split_size=4, dim=1), 1)), id="by keyword"),
    pytest.param(net(halves), id="chunk and cat"),
    pytest.param(net(unequal_parts), id="unequal parts"),
    pytest.param(net(split_features_of_tokens), id="features of tokens"),
    pytest.param(net(one_channel_each), id="a channel each"),
    pytest.param(net(skip), id="skip connection"),
    pytest.param(net(plain_behind), id="plain map behind an active one"),
    pytest.param(net(lambda n, x: x.repeat(1, 2, 1, 1)[:, 4:12]), id="repeated channels"),
]
# Positions mixed with features or cut: dense, named and right.
DENSE = [
    pytest.param(net(lambda n, x: x.repeat(1, 1, 2, 1)[:, :, 8:40]), "repeat", id="repeated rows"),
    pytest.param(net(lambda n, x: torch.cat([x[:, :, :16], x[:, :, 16:] * 2], 2)), "getitem", id="halves of the rows"),
    pytest.param(net(lambda n, x: torch.cat(x.chunk(2, dim=2), 2)), "chunk", id="chunks of the rows"),
    pytest.param(net(lambda n, x: torch.cat([x, x], 2)[:, :, ::2]), "cat", id="cat of rows"),
    pytest.param(net(lambda n, x: x.reshape(len(x) * 8, 32, 32).view(x.shape)), "reshape", id="samples with features"),
    pytest.param(net(lambda n, x: x.view(len(x), 8, 64, 16).view(x.shape)), "view", id="other sides"),
    pytest.param(
        net(lambda n, x: n.side(x.transpose(2, 3)).transpose(2, 3)), "conv2d", id="rows and columns exchanged"
    ),
]


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make, name", DENSE)
def test_full_mask_equals_the_dense_model_through_the_fall_back(trial, make, name):
    done = trial(make, batch=2)
    assert (done.error() < 1e-4, any(name in found for found in done.effect.fallbacks)) == (True, True)


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@pytest.mark.parametrize("make", CASES + [pytest.param(case.values[0], id=case.id) for case in DENSE])
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    assert trial(make, mask="wide").error() < 1e-4


def test_view_that_does_not_fit_fails_as_torch_does(trial):
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        trial(net(lambda n, x: x.view(len(x), 7, -1)))


def test_convolution_that_falls_back_is_counted(trial):
    def make():
        return Net(lambda n, x: n.side(x.transpose(2, 3)).transpose(2, 3))

    with MacCounter() as counter:
        done = trial(make, mask="small")
    assert counter.count.total == done.effect.macs + 2 * done.effect.dense_macs


# -- views of plain maps, which lie channels-last where the model's own do not --


class Flat(nn.Module):
    """A convolution to a level that runs dense, a norm, and ``body`` of the map viewed as (B, 2, C / 2 * H * W)."""

    def __init__(self, body):
        super().__init__()
        self.first, self.norm, self.body = nn.Conv2d(8, 8, 3, padding=1, stride=4), nn.GroupNorm(2, 8), body

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.body(x, x.view(len(x), 2, 256))


@pytest.mark.parametrize(
    "shape", [lambda f, x, *s: f(x, s), lambda f, x, *s: f(x, list(s)), lambda f, x, *s: f(x, torch.Size(s))],
    ids=["tuple", "list", "size"],
)  # fmt: skip
@pytest.mark.parametrize("level", [9, 4], ids=["plain", "active"])
@pytest.mark.parametrize(
    "func", [torch.reshape, torch.Tensor.reshape, torch.Tensor.view], ids=["function", "method", "view"]
)
def test_shapes_in_one_argument(trial, func, level, shape):
    done = trial(lambda: Flat(lambda x, flat: shape(func, x * 2, 1, 2, 4, 8, 8).flatten(1, 2)), min_resolution=level)
    assert done.error() < 1e-4


@pytest.mark.parametrize("level", [9, 4], ids=["plain", "active"])
def test_shapes_that_mix_positions_in_one_argument(trial, level):
    done = trial(
        lambda: Flat(lambda x, flat: torch.reshape(torch.reshape(x, (1, 64, 8)).sin(), x.shape)), min_resolution=level
    )
    assert done.error() < 1e-4


def test_a_plain_map_may_be_viewed_as_the_model_views_its_own(trial):
    done = trial(lambda: Flat(lambda x, flat: flat.softmax(-1).view(x.shape) + x), min_resolution=9, batch=2)
    assert done.error() < 1e-4


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, flat: x + flat.mul_(2).view(x.shape), id="view"),
        pytest.param(lambda x, flat: F.relu(x, inplace=True) + flat.view(x.shape), id="map"),
    ],
)
def test_a_write_to_such_a_view_is_refused(trial, body):
    with pytest.raises(ModelError, match="is a copy here"):
        trial(lambda: Flat(body), min_resolution=9)
