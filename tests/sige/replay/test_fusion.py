"""Which operators of a traced step become one, and which must not."""

import functools

import pytest
import torch
import torch.nn.functional as F

from sige.kernels import ops
from sige.kernels.activations import ACTIVATIONS
from sige.replay.fusion import fuse
from sige.replay.tracer import Tracer


class NoMemory:
    """What a tracer asks of a step's memory, with nothing in it."""

    entries, output = {}, ()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


silu = functools.partial(ops.activate_rows, activation="silu")
INDEX = torch.arange(-1, 35).view(4, 9)
PLACES = torch.tensor([4, 0, 7])
TENSORS = {
    "source": (40, 8), "weight": (16, 8, 3, 3), "bias": (16,), "square": (16, 16), "vector": (1, 16), "table": (2, 16),
    "residual": (3, 16), "map": (9, 16), "scale": (1, 16), "shift": (1, 16), "target": (9, 16), "sums": (9, 32), "totals": (1, 32),
}  # fmt: skip


class Given:
    """Fresh operands of a step, the same at every call."""

    def __init__(self):
        for seed, (name, shape) in enumerate(TENSORS.items()):
            setattr(self, name, random(*shape, seed=seed))
        self.sample = torch.tensor([0, 1, 1])

    def conv(self):
        return ops.conv_rows(self.source, INDEX, self.weight, self.bias)[:3]

    def affine(self, rows, sample=None):
        return ops.affine_rows(rows, self.scale, self.shift, sample)


def fused(step):
    """The operators that a step is made of once it is fused, each with whether it is a view."""
    given = Given()
    tracer = Tracer([], NoMemory())
    with tracer, torch.no_grad():
        made = step(given)
    made = made if isinstance(made, tuple) else (made,)
    calls = fuse(tracer.calls, tracer.looks, {tracer.number(tensor) for tensor in made if tensor is not None})
    return [(call[0]._schema.name.split("::")[1], call[0].is_view) for call in calls]


def names(step):
    """Those operators by name, without views."""
    return [name for name, view in fused(step) if not view]


def into_map(given, rows):
    return ops.exchange_rows_(given.target, PLACES, rows)


def heads(rows):
    return rows.view(3, 4, 4)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda g: g.conv() + g.vector, id="vector"),
        pytest.param(lambda g: g.conv() + g.table[g.sample], id="vector a sample"),
        pytest.param(lambda g: g.residual + g.conv(), id="residual, on the left"),
        pytest.param(lambda g: g.conv() + g.vector + g.residual, id="vector and residual"),
        pytest.param(lambda g: silu(g.affine(g.conv())), id="norm and activation"),
        pytest.param(lambda g: into_map(g, g.conv()), id="into a map"),
        pytest.param(lambda g: into_map(g, silu(g.affine(g.conv() + g.vector + g.residual))), id="all, into a map"),
        pytest.param(lambda g: silu(g.conv()), id="activation alone"),
        pytest.param(lambda g: into_map(g, silu(g.conv())), id="activation, into a map"),
        pytest.param(lambda g: (lambda rows: (rows, silu(rows)))(g.conv()), id="activation, the rows wanted too"),
        pytest.param(lambda g: ops.linear_rows(g.residual, g.square, None) + g.residual, id="linear layer"),
        pytest.param(lambda g: g.conv() + ops.gather_rows(g.map, PLACES), id="residual out of a map"),
        pytest.param(lambda g: into_map(g, g.conv() + g.map.index_select(0, PLACES)), id="the same, into a map"),
        pytest.param(lambda g: ops.linear_rows(ops.gather_rows(g.map, PLACES), g.square, None), id="rows of a map"),
        pytest.param(lambda g: ops.linear_rows(g.map.index_select(0, PLACES), g.square, None), id="rows selected"),
        pytest.param(lambda g: into_map(g, heads(g.conv()).view(3, 16)), id="heads taken apart and put together"),
    ],
)
def test_what_follows_a_convolution_goes_into_it(step):
    assert names(step) == ["conv_rows_fused"]


@pytest.mark.parametrize(
    "last, expected",
    [
        pytest.param(lambda rows: rows.view(3, 16), 0, id="back to the rows"),
        pytest.param(lambda rows: rows.view(48), 2, id="on to another shape"),
    ],
)
def test_views_that_nobody_needs_are_left_out(last, expected):
    assert sum(view for _, view in fused(lambda g: last(heads(g.conv())) + 1)) == expected


@pytest.mark.parametrize(
    "activation",
    [functools.partial(ops.activate_rows, activation=name, slope=0.2) for name in ACTIVATIONS[1:]],
    ids=ACTIVATIONS[1:],
)
def test_an_activation_goes_into_the_norms_map(activation):
    assert names(lambda g: into_map(g, activation(g.affine(g.residual)))) == ["activate_rows"]


def whole(given, *steps):
    """A map through norm (8 groups), activation or convolution, one after the other."""
    made = given.source.view(1, 4, 10, 8).permute(0, 3, 1, 2)
    for step in steps:
        if step == "norm":
            made = ops.normalize_map(made, 8)
        elif step == "conv":
            made = ops.conv_map(made, given.weight, given.bias, padding=(1, 1))
        else:
            made = ops.normalize_map(made, 0, activation=step, slope=0.2)
    return made


@pytest.mark.parametrize(
    "steps, expected",
    [
        pytest.param(["norm", "silu", "conv"], ["conv_map_fused"], id="norm and activation"),
        pytest.param(["norm", "conv"], ["conv_map_fused"], id="norm"),
        pytest.param(["leaky_relu", "conv"], ["conv_map_fused"], id="activation"),
        pytest.param(["norm", "relu"], ["normalize_map"], id="no convolution"),
        pytest.param(["conv", "norm", "silu"], ["conv_map", "normalize_map"], id="convolution first"),
        pytest.param(["silu", "norm", "conv"], ["normalize_map", "conv_map_fused"], id="activation before the norm"),
        pytest.param(["silu", "relu", "conv"], ["normalize_map", "conv_map_fused"], id="two activations"),
    ],
)
def test_what_a_whole_map_goes_through_goes_into_its_convolution(steps, expected):
    assert names(lambda given: whole(given, *steps)) == expected


def test_a_whole_map_that_others_need_too_stays():
    def step(given):
        made = whole(given, "norm", "silu")
        return made, ops.conv_map(made, given.weight, given.bias, padding=(1, 1))

    assert names(step) == ["normalize_map", "conv_map"]


def statistics_first(given):
    """A norm whose shift depends on the rows, as an incremental one does."""
    rows = given.conv()
    shift = ops.update_statistics_(rows, given.sums, PLACES, given.scale, given.totals, groups=16, map_values=9)[3]
    return silu(ops.affine_rows(rows, given.scale, shift, None))


def changed_source(given):
    rows = ops.conv_rows(given.source, INDEX, given.weight, given.bias)
    given.source.mul_(2)
    return rows[:3] + given.residual


def changed_residual(given):
    residual = given.residual
    rows = given.conv() + residual
    residual.mul_(2)
    return silu(given.affine(rows))


def changed_map(given):
    rows = ops.gather_rows(given.map, PLACES)
    given.map.mul_(2)
    return given.conv() + rows


def own_map(given):
    return into_map(given, given.conv() + ops.gather_rows(given.target, PLACES))


def gathered_twice(given):
    rows = ops.gather_rows(given.map, PLACES)
    return given.conv() + rows, rows + 1


def read_before(given):
    """Somebody reads the map before the rows go there, but after they are made."""
    rows = given.conv()
    before = given.target + 1
    return before, into_map(given, rows)


def used_twice(given):
    rows = silu(given.affine(given.residual))
    return into_map(given, rows), rows.tanh()


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(lambda g: g.conv() + g.residual + g.vector, ["conv_rows_fused", "add"], id="vector last"),
        pytest.param(lambda g: (lambda x: x + x)(g.conv()), ["conv_rows_fused", "add"], id="added to itself"),
        pytest.param(lambda g: torch.add(g.conv(), g.vector, alpha=2), ["conv_rows_fused", "add"], id="added twice"),
        pytest.param(lambda g: g.conv() + g.vector.double(), ["conv_rows_fused", "_to_copy", "add"], id="wider vector"),
        pytest.param(
            lambda g: F.gelu(g.affine(g.residual), approximate="tanh"), ["affine_rows", "gelu"], id="another gelu"
        ),
        pytest.param(
            statistics_first, ["conv_rows_fused", "update_statistics_", "activate_rows"], id="norm of the rows"
        ),
        pytest.param(changed_source, ["conv_rows", "mul_", "add"], id="source written to"),
        pytest.param(changed_residual, ["conv_rows_fused", "mul_", "activate_rows"], id="residual written to"),
        pytest.param(read_before, ["add", "conv_rows_fused"], id="map read before"),
        pytest.param(changed_map, ["gather_rows", "mul_", "conv_rows_fused"], id="map of the residual written to"),
        pytest.param(own_map, ["conv_rows_fused", "exchange_rows_"], id="residual out of the map that is written"),
        pytest.param(gathered_twice, ["gather_rows", "conv_rows_fused", "add"], id="picked rows used twice"),
        pytest.param(
            lambda g: into_map(g, heads(g.conv()).mT.reshape(3, 16)),
            ["conv_rows_fused", "clone", "_unsafe_view", "exchange_rows_"],
            id="heads put together otherwise",
        ),
        pytest.param(
            lambda g: (heads(g.conv()), into_map(g, g.residual)),
            ["conv_rows_fused", "exchange_rows_"],
            id="heads handed on",
        ),
        pytest.param(used_twice, ["activate_rows", "exchange_rows_", "tanh"], id="activated rows used twice"),
        pytest.param(
            lambda g: g.affine(g.conv() + g.table[g.sample], None), ["conv_rows_fused", "affine_rows"], id="two samples"
        ),
    ],
)
def test_what_must_stay_apart_does(step, expected):
    assert names(step) == expected


def test_what_is_computed_twice_is_computed_once():
    assert names(lambda g: (F.silu(g.vector) + 1, F.silu(g.vector) * 2)) == ["silu", "add", "mul"]


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(lambda g: (g.residual / 1.0) + g.shift, ["add"], id="divided by one"),
        pytest.param(lambda g: (g.residual * 1) + g.shift, ["add"], id="times one"),
        pytest.param(lambda g: (g.residual / 2) + g.shift, ["div", "add"], id="divided by two"),
        pytest.param(lambda g: (g.sample[:, None] / 1) + g.scale, ["div", "add"], id="divided into floats"),
        pytest.param(lambda g: g.residual / 1.0, ["div"], id="what the step gives"),
        pytest.param(lambda g: (g.residual / 1.0).mul_(2) + g.shift, ["div", "mul_", "add"], id="written to"),
    ],
)
def test_a_scale_of_one_is_left_out(step, expected):
    assert names(step) == expected


def test_what_is_computed_of_a_tensor_that_changes_is_computed_anew():
    def step(given):
        before = F.silu(given.vector) + 1
        given.vector.add_(1)
        return before, F.silu(given.vector) + 2

    assert names(step) == ["silu", "add", "add_", "silu", "add"]
