"""Operators without a rule: dense, right, named; those that write in place write to the whole map."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.errors import ModelError
from sige.rules import RULES
from sige.rules.fallback import name_of


class Net(nn.Module):
    """A 3x3 convolution, then ``operator`` in a module named ``middle``, then twice the result."""

    def __init__(self, operator):
        super().__init__()
        self.first, self.middle = nn.Conv2d(8, 8, 3, padding=1), nn.Module()
        self.middle.forward = operator

    def forward(self, x):
        return self.middle(self.first(x)) * 2


def net(operator):
    return lambda: Net(operator)


OPERATORS = [
    pytest.param(lambda x: torch.fft.fft2(x).real, "fft_fft2", id="fft2"),
    pytest.param(lambda x: torch.roll(x, 5, 3), "roll", id="roll"),
    pytest.param(lambda x: F.lp_pool2d(x.abs() + 1, 2, 1), "lp_pool2d", id="lp_pool2d"),
    pytest.param(lambda x: torch.cumsum(x, 2), "cumsum", id="cumsum"),
    pytest.param(lambda x: x.softmax(3), "softmax", id="softmax"),
    pytest.param(lambda x: x - x.mean(2, keepdim=True), "mean", id="mean"),
    pytest.param(lambda x: torch.cat([x, x]).chunk(2)[1], "cat", id="list of maps"),
    pytest.param(lambda x: x.flip(2), "flip", id="flip"),
    pytest.param(lambda x: x + x[:, 0].flip(1).unsqueeze(1), "flip", id="flip of one channel"),
]


@pytest.mark.parametrize("operator, name", OPERATORS)
def test_full_mask_equals_the_dense_model(trial, operator, name):
    assert trial(net(operator), batch=2).error() < 1e-4


@pytest.mark.parametrize("operator, name", OPERATORS)
def test_it_is_named_with_its_module(trial, operator, name):
    found = trial(net(operator), mask="small").effect.fallbacks
    assert any(name in entry and entry.endswith(" at middle") for entry in found)


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("operator, name", OPERATORS)
def test_small_mask_sees_the_remembered_rows(trial, operator, name, geometry):
    """The operator sees the map with fresh rows inside the active set and remembered ones outside."""
    done = trial(net(operator), geometry, "small")
    model = done.session.model
    inside = done.session._plans[next(iter(done.session._plans))].level_set(32, 32).mask()[:, None]
    with torch.no_grad():
        seen = torch.where(inside, model.first(done.edited), model.first(done.original))
        expected = model.middle(seen) * 2
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - expected)[active].abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("operator, name", OPERATORS)
def test_unchanged_input_returns_the_recording(trial, operator, name):
    done = trial(net(operator), mask="same")
    assert (done.after - done.before).abs().max() <= 1e-5 * done.before.abs().max()


@pytest.mark.parametrize("operator, name", OPERATORS)
def test_undo_restores_what_it_remembers(trial, operator, name):
    done = trial(net(operator), mask="small")
    done.session.undo()
    with done.session.edit(torch.ones(32, 32, dtype=torch.bool)):
        again = done.session.model(done.original)
    assert (again - done.before).abs().max() <= 1e-5 * done.before.abs().max()


def assign(x):
    x[:, 0] = 0
    return x


def zero(x):
    x.zero_()
    return x


def fill_by_mask(x):
    return x.masked_fill_(torch.zeros(32, 32, dtype=torch.bool), 1.0)


def rrelu(x):
    return F.rrelu(x, inplace=True)


@pytest.mark.parametrize(
    "operator, name",
    [
        pytest.param(assign, "__setitem__", id="item assignment"),
        pytest.param(zero, "zero_", id="zero_"),
        pytest.param(fill_by_mask, "masked_fill_", id="masked_fill_"),
        pytest.param(rrelu, "rrelu", id="inplace=True"),
    ],
)
@pytest.mark.parametrize("mask", ["full", "small", "same"])
def test_in_place_operator_without_a_rule_runs_on_the_whole_map(trial, operator, name, mask):
    done = trial(net(operator), mask=mask)
    wanted = {"full": done.dense, "same": done.before}.get(mask, done.after)
    assert ((done.after - wanted).abs().max() < 1e-5, [name in found for found in done.effect.fallbacks]) == (
        True,
        [True],
    )


@pytest.mark.parametrize("operator, name", [pytest.param(lambda x: x.unsqueeze_(0)[0], "unsqueeze_", id="unsqueeze_")])
def test_in_place_change_of_shape_is_refused(trial, operator, name):
    with pytest.raises(ModelError, match=f"^middle calls .*{name}, which changes the shape of a map"):
        trial(net(operator))


def test_metadata_is_no_fall_back(trial):
    def look(x):
        assert (x.shape, x.size(1), x.dim(), x.dtype, x.device.type, x.is_floating_point()) == (
            (1, 8, 32, 32), 8, 4, torch.float32, "cpu", True,
        )  # fmt: skip
        return x

    assert trial(net(look)).effect.fallbacks == []


def test_plain_operators_are_none_of_its_business(trial):
    assert trial(net(lambda x: x + torch.roll(torch.ones(32), 3).cumsum(0))).effect.fallbacks == []


@pytest.mark.parametrize(
    "func, name",
    [
        (torch.roll, "roll"),
        (F.avg_pool2d, "avg_pool2d"),
        (F.max_pool2d, "max_pool2d"),
        (torch.Tensor.mT.__get__, "Tensor.mT"),
    ],
    ids=["function", "nn.functional", "dispatched", "property"],
)
def test_names(func, name):
    assert name_of(func).endswith(name)


def test_every_rule_is_callable():
    assert len(RULES) > 100 and all(callable(handler) for handler in RULES.values())


class Multiplying(nn.Module):
    """Convolution, then one operator that multiplies matrices and has no rule."""

    def __init__(self, operator):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.operator = operator

    def forward(self, x):
        return self.operator(self.first(x))


@pytest.mark.parametrize(
    "operator, macs",
    [
        pytest.param(lambda x: torch.einsum("bchw,hd->bcdw", x, torch.ones(64, 64)), 8 * 64**3, id="einsum"),
        pytest.param(
            lambda x: torch.conv_transpose2d(x, torch.ones(8, 4, 2, 2), stride=2, dilation=2),
            8 * 4 * 4 * 64 * 64,
            id="transposed convolution with dilation",
        ),
    ],
)
def test_products_without_a_rule_are_counted(operator, macs):
    model, x = Multiplying(operator), torch.randn(1, 3, 64, 64)
    session = sige.Session(model, dataclasses.replace(sige.policy("incremental"), dense_above=None))
    with session.record():
        model(x)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:16, 8:16] = True
    with session.edit(mask) as effect:
        model(x)
    assert effect.macs > macs and effect.dense_macs == macs + 8 * 27 * 64 * 64


class Rows(nn.Module):
    """A linear layer along the map's rows: it mixes positions, and nothing before it has a rule."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x):
        return self.layer(x)


def test_a_model_that_runs_dense_as_a_whole_says_so(trial):
    done = trial(Rows, mask="small")
    assert (done.effect.macs, done.effect.fallbacks[0][:11]) == (done.effect.dense_macs, "everything:")


@pytest.mark.parametrize("dense", [{"min_resolution": 33}, {"dense_modules": ("*",)}], ids=["level", "module"])
def test_a_policy_that_wants_it_dense_falls_back_on_nothing(trial, dense):
    assert trial(Rows, mask="small", **dense).effect.fallbacks == []
