"""Operators of the kernels as models: every way computes the same, at the tiles of the edit; what a call must move and multiply."""

import pytest
import torch

from sige.runs.errors import UserError
from sige.runs.methods import operator
from sige.runs.models import operator_ways, operators
from sige.runs.models.zoo import Zoo

SHAPE = {"height": 32, "width": 48, "channels": 16, "outputs": 24, "kernel": 3, "heads": 2}
PICTURE = {"channels": 3, "height": 64, "width": 96}
LOADER = "sige.runs.models.operators"
CPU = {"name": "cpu", "device": "cpu", "dtype": "float32"}
EVERY = [pytest.param(name, way, id=f"{name}-{way}") for name, ways in operator_ways.WAYS.items() for way in ways]


def config(name, **shape):
    model = {"name": "small", "loader": LOADER, "weights": "random", "seed": 0, "operator": name, "input": PICTURE}
    groups = {"groups": 4} if name == "update_statistics_" else {}
    return {**model, "map": {**SHAPE, **groups, **shape}}


@pytest.fixture
def mask():
    """Touches the picture's upper left corner and its lower right one."""
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[:20, :17] = mask[-1, -1] = True
    return mask


@pytest.fixture
def runner():
    """``runner(operator, way)`` and the inputs of its step."""

    def make(name, way, **shape):
        model = config(name, **shape)
        zoo = Zoo(model, "cpu")
        return operator.build("it", {"way": way}, zoo, CPU), zoo.inputs(torch.zeros(3, 64, 96), 3)

    return make


@pytest.mark.parametrize("name, way", EVERY)
def test_every_way_computes_what_the_operator_gives_on_a_whole_map(runner, mask, name, way):
    made, inputs = runner(name, way)
    exact = made.module.double()(inputs[0].double())
    made.module.float()
    output = made.step(inputs, mask).output
    assert output.shape == exact.shape
    assert torch.allclose(output.double(), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name, way", EVERY)
def test_a_way_computes_the_edits_tiles_alone(runner, mask, name, way):
    made, inputs = runner(name, way)
    made.step(inputs, mask)
    again = made.step(inputs, mask).output
    shape = tuple(again[0].shape) if isinstance(again, tuple) else tuple(again.shape)
    tiles = len(operators.tiles(mask, SHAPE))
    whole = way in ("whole_map", "channels_first") or name in ("conv_map", "scatter_rows_")
    assert (tiles, shape[0]) == (
        5,
        {True: shape[0], False: tiles if name == "update_statistics_" else 64 * tiles}[whole],
    )


def test_another_mask_is_another_call(runner, mask):
    made, inputs = runner("gather_rows", "kernel")
    made.step(inputs, mask)
    before = made.work.bytes
    made.step(inputs, torch.ones_like(mask))
    assert (before, made.work.bytes) == tuple(2 * n * 16 * 4 + 8 * n for n in (5 * 64, 32 * 48))


def test_what_a_convolution_moves_and_multiplies(runner, mask):
    made, inputs = runner("conv_rows", "kernel")
    made.step(inputs, torch.ones_like(mask))
    positions, weight = 32 * 48, 9 * 16 * 24
    moved = 4 * (positions * 16 + weight + positions * 24) + 8 * positions * 9
    assert (made.work.multiplies, made.work.bytes) == (positions * weight, moved)


@pytest.mark.parametrize("outputs", [16, 32])
@pytest.mark.parametrize("way", ["kernel", "gather_conv", "blocks", "whole_map"])
def test_every_way_of_a_depthwise_convolution(runner, mask, way, outputs):
    made, inputs = runner("conv_rows", way, groups=16, outputs=outputs)
    exact = made.module.double()(inputs[0].double())
    made.module.float()
    assert torch.allclose(made.step(inputs, mask).output.double(), exact, atol=2e-5)


def test_what_a_depthwise_convolution_multiplies(runner, mask):
    made, inputs = runner("conv_rows", "kernel", groups=16, outputs=16)
    made.step(inputs, torch.ones_like(mask))
    assert made.work.multiplies == 32 * 48 * 9 * 16


def test_what_an_update_of_statistics_moves(runner, mask):
    made, inputs = runner("update_statistics_", "kernel")
    made.step(inputs, mask)
    rows, sums, maps, wide = 5 * 64 * 16, 5 * 3 * 2 * 4, 4 * 16, 4 + 2 * 2 * 4
    assert (made.work.multiplies, made.work.bytes) == (0, 4 * (rows + sums + maps) + 8 * (5 + wide))


@pytest.mark.parametrize("way", list(operator_ways.WAYS["update_statistics_"]))
def test_an_update_of_statistics_gives_the_same_every_time(runner, mask, way):
    made, inputs = runner("update_statistics_", way)
    made.step(inputs, mask)
    first, again = (made.step(inputs, mask).output for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_a_small_edit_reads_the_rows_around_its_tiles(runner):
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[34, 34] = True  # one tile of the map, not at its border
    made, inputs = runner("conv_tiles", "kernel")
    made.step(inputs, mask)
    assert made.work.bytes == 4 * (100 * 16 + 9 * 16 * 24 + 64 * 24) + 8 * 100


@pytest.mark.parametrize(
    "options, model, sentence",
    [
        pytest.param(
            {"way": "magic"},
            config("linear_rows"),
            "unknown way 'magic' of linear_rows; choose kernel or linear or addmm.",
            id="way",
        ),
        pytest.param(
            {"way": "kernel"},
            {"name": "ddpm"},
            f"an operator's way needs a model of one operator of {', '.join(operator_ways.WAYS)}, e.g. model=operator.",
            id="model",
        ),
    ],
)
def test_a_way_that_is_not_there_is_told(options, model, sentence):
    with pytest.raises(UserError) as told:
        operator.check(options, model)
    assert str(told.value) == sentence


@pytest.mark.parametrize(
    "model, sentence",
    [
        pytest.param(
            config("conv_cols"),
            f"unknown operator 'conv_cols'; choose one of {', '.join(operators.OPERATORS)}.",
            id="operator",
        ),
        pytest.param(config("gather_rows", width=30), "a map of 32x30 is not made of tiles of 8x8.", id="map"),
    ],
)
def test_a_model_that_cannot_be_built_is_told(model, sentence):
    with pytest.raises(UserError) as told:
        operators.build(model)
    assert str(told.value) == sentence


def test_every_operator_has_ways_and_the_kernel_comes_first():
    assert {name: next(iter(ways)) for name, ways in operator_ways.WAYS.items()} == dict.fromkeys(
        operators.OPERATORS, "kernel"
    )
