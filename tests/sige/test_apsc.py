"""The search for block shapes: the paper's formula and its readings, measured time, and a search inside an edit."""

import itertools

import numpy as np
import pytest
import torch
from drawn import blot, window

import sige
from sige.apsc import OBJECTIVES, SHAPES, MeasuredTime, choose, fitting, tile_counts
from sige.block_costs import CostTable
from sige.plan import Plan
from sige.windows import canonical_window

ADAPTIVE = sige.Policy(name="apsc", geometry="tile", block="adaptive", min_resolution=4, norm="dense")


def table(row_seconds=1e-6, tile_seconds=lambda h, w: 1.0):
    """Times in proportion to what is computed: ``row_seconds`` a position, ``tile_seconds`` a tile; all else is nearly free."""
    point = dict(rows=0, columns=0, channels=64)
    rows = [dict(point, operator=name, count=1, seconds=1e-12) for name in ("linear_rows", "around")]
    rows.append(dict(point, operator="conv_rows", count=1, seconds=row_seconds))
    for h, w in SHAPES:
        rows.append(dict(operator="conv_tiles", rows=h, columns=w, channels=64, count=1, seconds=tile_seconds(h, w)))
    return CostTable(rows)


def level(height, width, made=None, channels=64):
    return MeasuredTime(made or table(), {canonical_window(height, width): {(channels, channels): 1}})


def hit(mask, h, w):
    return sum(
        bool(mask[y : y + h, x : x + w].any()) for y in range(0, len(mask), h) for x in range(0, len(mask[0]), w)
    )


def test_there_are_25_shapes_the_smallest_first():
    sides = {2, 4, 8, 16, 32}
    assert (set(SHAPES), SHAPES[0], SHAPES[-1]) == (set(itertools.product(sides, sides)), (2, 2), (32, 32))


@pytest.mark.parametrize("side", [(32, 32), (24, 40)], ids=["whole tiles", "ragged"])
@pytest.mark.parametrize("shape", [(2, 2), (4, 16), (32, 8)], ids=str)
def test_tiles_are_those_that_hold_an_edited_position(shape, side):
    mask = blot(*side, batch=2)
    assert tile_counts(mask, shape)[0].tolist() == [hit(sample, *shape) for sample in mask]


@pytest.mark.parametrize("side", [(32, 32), (24, 40)], ids=["whole tiles", "ragged"])
@pytest.mark.parametrize("shape", [(2, 2), (4, 16), (32, 8)], ids=str)
def test_their_positions_are_those_that_a_plan_computes(shape, side):
    mask = blot(*side, batch=2)
    plan = Plan(mask, sige.Policy(geometry="tile", block=(shape,) if max(shape) <= 24 else ((2, 2), shape)), size=side)
    grid = sige.active_set.ActiveSet.from_tiles(sige.masks.in_tiles(mask, shape), shape, *side)
    assert (tile_counts(mask, shape)[1].tolist(), plan.size) == ([stop - start for start, stop in grid.segments], side)


@pytest.mark.parametrize(
    "objective, by_hand",
    [
        pytest.param("printed", lambda h, w: (h - 3 + 1) * (w - 3 + 1), id="printed"),
        pytest.param("gathered", lambda h, w: (h + 3 - 1) * (w + 3 - 1), id="gathered"),
        pytest.param("multiplications", lambda h, w: h * w, id="multiplications"),
    ],
)
@pytest.mark.parametrize("shape", [(2, 2), (4, 16), (32, 8)], ids=str)
def test_formulas(objective, by_hand, shape):
    assert OBJECTIVES[objective](shape, 7) == by_hand(*shape) * 7


@pytest.mark.parametrize("seed", range(5))
def test_the_printed_formula_is_zero_at_two_and_so_picks_2x2(seed):
    choice = choose(blot(96, 96, seed=seed), OBJECTIVES["printed"])
    assert (choice.shape, choice.cost) == ((2, 2), 0)


@pytest.mark.parametrize("seed", range(5))
def test_without_two_the_printed_formula_picks_4x4(seed):
    shapes = [shape for shape in SHAPES if min(shape) > 2]
    assert choose(blot(96, 96, seed=seed), OBJECTIVES["printed"], shapes).shape == (4, 4)


@pytest.mark.parametrize("seed", range(5))
def test_multiplications_pick_2x2(seed):
    assert choose(blot(96, 96, seed=seed), OBJECTIVES["multiplications"]).shape == (2, 2)


def test_of_equal_costs_the_smaller_block_wins():
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    choice = choose(mask, OBJECTIVES["multiplications"])
    assert (choice.shape, set(choice.costs.values())) == ((2, 2), {1024.0})


def test_a_strip_is_gathered_in_strips():
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[:, :2, :64] = True
    h, w = choose(mask, OBJECTIVES["gathered"]).shape
    assert (h, w) == (2, 32)


def test_shapes_larger_than_the_map_are_left_out():
    choice = choose(torch.ones(1, 12, 24, dtype=torch.bool), OBJECTIVES["gathered"])
    assert {max(h / 12, w / 24) <= 1 for h, w in choice.costs} == {True}


@pytest.mark.parametrize(
    "size, sides",
    [((96, 96), {2, 4, 8, 16, 32}), ((48, 48), {2, 4, 8, 16}), ((24, 24), {2, 4, 8}), ((6, 6), {2}), ((5, 5), {2})],
    ids=str,
)
def test_shapes_into_which_a_map_divides(size, sides):
    assert {side for shape in fitting(SHAPES, *size, dividing=True) for side in shape} == sides


def test_a_map_too_small_for_any_takes_the_smallest():
    assert choose(torch.ones(1, 1, 1, dtype=torch.bool), OBJECTIVES["gathered"]).shape == (2, 2)


def test_each_shape_is_priced_once():
    asked = []
    choose(blot(96, 96), lambda shape, tiles, positions: asked.append(shape) or 1.0)
    assert asked == list(SHAPES)


# -- measured time --


def test_position_by_position_the_fewest_positions_win():
    assert choose(blot(96, 96), level(96, 96)).shape == (2, 2)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (32, 2)], ids=str)
def test_a_shape_whose_tiles_are_cheap_wins(shape):
    cheap = table(tile_seconds=lambda h, w: 1e-9 if (h, w) == shape else 1.0)
    assert choose(blot(96, 96), level(96, 96, cheap)).shape == shape


def test_time_is_that_of_the_faster_way():
    time = level(32, 32, table(tile_seconds=lambda h, w: 5e-6))
    counts = np.array([1, 10]), np.array([4, 400])  # 4 positions in a tile by itself; 400 in 10 tiles
    assert time((8, 8), *counts) == pytest.approx([4e-6, 50e-6], rel=1e-3)


@pytest.mark.parametrize(
    "shape, sizes, seconds",
    [
        pytest.param(canonical_window(32, 32), {(64, 64): 3}, 3 * 12e-6, id="three alike"),
        pytest.param(canonical_window(32, 32), {(64, 256): 1}, 4 * 12e-6, id="wider"),
        pytest.param(window((32, 32), 5), {(64, 64): 1}, 25 / 9 * 12e-6, id="25 taps"),
        pytest.param(window((32, 32), 3, stride=2), {(64, 64): 1}, 3e-6, id="stride 2"),
        pytest.param(window((64, 64), 3, scale=2), {(64, 64): 1}, 48e-6, id="behind up-sampling"),
        pytest.param(window((32, 32), 1), {(64, 64): 1}, 12e-12 * 2, id="1x1"),
    ],
)
def test_layers_are_priced_by_what_they_compute(shape, sizes, seconds):
    assert float(MeasuredTime(table(), {shape: sizes})((2, 2), 3, 12)) == pytest.approx(seconds, rel=1e-3, abs=1e-13)


def test_tiles_that_do_not_divide_the_map_are_not_convolved_whole():
    free = level(36, 36, table(tile_seconds=lambda h, w: 1e-12))
    ways = [float(free(shape, 4, 16)) for shape in ((4, 4), (8, 8))]
    assert ways == pytest.approx([4e-12 + 16e-12, 16e-6], rel=1e-2)


@pytest.mark.parametrize(
    "whole, seconds",
    [
        pytest.param("faster", 16e-6, id="faster"),
        pytest.param("always", 4.0, id="always whole"),
        pytest.param("never", 16e-6, id="never whole"),
    ],
)
def test_tiles_may_have_to_be_convolved_whole(whole, seconds):
    time = MeasuredTime(table(), {canonical_window(32, 32): {(64, 64): 1}}, whole)
    assert float(time((2, 2), 4, 16)) == pytest.approx(seconds, rel=1e-3)
