"""The search for block shapes: the paper's formula and its readings, measured time, and a search inside an edit."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import blot, window
from torch import nn

import sige
from sige import apsc
from sige.apsc import OBJECTIVES, SHAPES, MeasuredTime, choose, costs_of, tile_counts
from sige.block_costs import CostTable
from sige.errors import PolicyError
from sige.kernels import ops
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


def test_a_map_too_small_for_any_takes_the_smallest():
    assert choose(torch.ones(1, 1, 1, dtype=torch.bool), OBJECTIVES["gathered"]).shape == (2, 2)


def test_many_masks_cost_what_each_costs_alone():
    mask = blot(48, 48, batch=3)
    alone = [[choose(sample[None], OBJECTIVES["gathered"]).costs[shape] for sample in mask] for shape in SHAPES[:9]]
    assert np.array_equal(costs_of(mask, OBJECTIVES["gathered"])[:9], alone)


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


@pytest.mark.parametrize("whole, called", [("always", True), ("never", False)])
@pytest.mark.parametrize("block", ["adaptive", ((4, 8),)], ids=["adaptive", "fixed"])
def test_whole_tiles_are_the_policys(costs, monkeypatch, block, whole, called):
    costs(table())
    tiles, convolve = [], ops.conv_tiles
    monkeypatch.setattr(ops, "conv_tiles", lambda *args: tiles.append(args[2]) or convolve(*args))
    policy = dataclasses.replace(ADAPTIVE, block=block, whole_tiles=whole)
    after, dense, _, _ = edited(policy, torch.ones(1, 32, 32, dtype=torch.bool))
    assert (bool(tiles), (after - dense).abs().max() < 1e-5) == (called, True)


# -- inside an edit --


class Levels(nn.Module):
    """Down by two and up again, a norm, a shortcut, attention's tokens left out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.down, self.inner = nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.one = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 8, 1)

    def forward(self, x):
        x = F.silu(self.norm(self.first(x)))
        y = F.interpolate(self.inner(self.down(x)), scale_factor=2)
        return self.one(torch.cat([x, self.up(y)], 1))


@pytest.fixture
def costs(monkeypatch):
    """``costs(table)``: what edits search with."""
    return lambda made: monkeypatch.setattr(sige.block_costs, "table", lambda device_type: made)


def edited(policy, mask, side=32, batch=1):
    """Output of an edit, that of the dense network, the effect and the plan."""
    model, generator = Levels().eval(), torch.Generator().manual_seed(1)
    x, other = (torch.randn(batch, 8, side, side, generator=generator) for _ in range(2))
    other = torch.where(mask[:, None], other, x)
    session = sige.Session(model, policy)
    with session.record():
        model(x)
    with session.edit(mask) as effect:
        after = model(other)
    with torch.no_grad():
        return after, model(other), effect, list(session._plans.values())[0]


FORCED = pytest.mark.parametrize("shape", [(2, 2), (4, 4), (4, 8), (2, 16), (16, 16)], ids=str)


@FORCED
@pytest.mark.parametrize("norm", ["dense", "cached"])
def test_a_search_forced_to_one_shape_is_that_shape_bit_for_bit(costs, shape, norm):
    costs(table())  # one position at a time, as without a search
    mask = blot(32, 32, batch=2)
    forced = dataclasses.replace(ADAPTIVE, block_choices=(shape,), norm=norm)
    fixed = dataclasses.replace(ADAPTIVE, block=(shape,), norm=norm)
    (one, _, effect, _), (other, _, expected, _) = (edited(policy, mask, batch=2) for policy in (forced, fixed))
    assert (torch.equal(one, other), effect.macs) == (True, expected.macs)


@FORCED
def test_a_search_forced_to_one_shape_whole_tiles_or_not_gives_the_same(costs, shape):
    mask, forced = blot(32, 32), dataclasses.replace(ADAPTIVE, block_choices=(shape,))
    results = []
    for tile_seconds in (1.0, 1e-12):
        costs(table(tile_seconds=lambda h, w: tile_seconds))
        results.append(edited(forced, mask)[0])
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("objective", ["measured", "gathered", "multiplications", "printed"])
def test_a_full_mask_equals_the_dense_model(objective):
    policy = dataclasses.replace(ADAPTIVE, block_objective=objective)
    after, dense, effect, _ = edited(policy, torch.ones(1, 32, 32, dtype=torch.bool))
    assert ((after - dense).abs().max() < 1e-5, effect.fallbacks) == (True, [])


@pytest.mark.parametrize("norm", ["dense", "incremental"])
def test_statistics_do_not_depend_on_the_shape(norm):
    full = torch.ones(1, 32, 32, dtype=torch.bool)
    after, dense, _, _ = edited(dataclasses.replace(ADAPTIVE, norm=norm), full)
    assert (after - dense).abs().max() < 1e-5


def test_each_level_has_a_shape_of_its_own(costs):
    costs(table(tile_seconds=lambda h, w: 1e-9 if h == 16 else 1.0))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, :3, :3] = True
    plan = edited(dataclasses.replace(ADAPTIVE, block_objective="gathered"), mask, side=64)[3]
    by_hand = {side: choose(plan.mask_at(side, side), OBJECTIVES["gathered"]).shape for side in (64, 32)}
    assert plan.blocks == {(side, side): shape for side, shape in by_hand.items()}


def test_the_search_knows_the_convolutions_of_each_level(costs):
    made = table()
    costs(made)
    plan = edited(ADAPTIVE, blot(32, 32))[3]
    known = {level: search.objective.layers for level, search in plan._searches.items()}
    fine = {window((32, 32), 3): {(8, 16): 1, (16, 16): 1}, window((32, 32), 3, stride=2): {(16, 16): 1}}
    fine[window((32, 32), 1)] = {(32, 8): 1}
    coarse = {window((16, 16), 3): {(16, 16): 1}}
    # the convolution `up` reads the coarse map through up-sampling: it belongs to the level that it reads
    fine[window((32, 32), 3)] = {(8, 16): 1}
    coarse[window((32, 32), 3, scale=2)] = {(16, 16): 1}
    assert known == {(32, 32): fine, (16, 16): coarse}


def test_steps_that_repeat_a_forward_do_not_count_its_convolutions_twice(costs):
    costs(table())
    model, x, mask = Levels().eval(), torch.randn(1, 8, 32, 32), blot(32, 32)
    session = sige.Session(model, ADAPTIVE)
    with session.record():
        model(x), model(x)
    with session.edit(mask):
        model(torch.where(mask[:, None], x + 1, x))
    (plan,) = session._plans.values()
    assert plan._searches[16, 16].objective.layers[window((16, 16), 3)] == {(16, 16): 1}


def test_counting_without_arithmetic_finds_the_same_shapes():
    mask, plans = blot(32, 32), []
    for device in ("cpu", "meta"):
        model, x = Levels().eval().to(device), torch.zeros(1, 8, 32, 32, device=device)
        session = sige.Session(model, ADAPTIVE)
        with session.record():
            model(x)
        with session.edit(mask) as effect:
            model(x.clone())
        plans.append((list(session._plans.values())[0].blocks, effect.macs))
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"block": "adaptiv"}, "block='adaptiv' is unknown: choose a whole number or 'adaptive'", id="name"),
        pytest.param({"geometry": "level"}, "block='adaptive' needs geometry='tile', not 'level'", id="geometry"),
        pytest.param({"block_choices": (4, 8)}, r"block_choices=\(4, 8\) must be None or a tuple of pairs", id="sides"),
        pytest.param({"block_choices": ()}, r"block_choices=\(\) must be None or a tuple of pairs", id="none"),
        pytest.param({"whole_tiles": True}, "whole_tiles=True is unknown: choose one of faster, always, never", id="whole"),
        pytest.param({"block_objective": "time"}, "block_objective='time' is unknown: choose one of measured, g", id="cost"),
    ],
)  # fmt: skip
def test_dials_that_cannot_be(changes, message):
    with pytest.raises(PolicyError, match=message):
        dataclasses.replace(ADAPTIVE, **changes)


@pytest.mark.parametrize("token_block, inner", [(1, True), (2, True), (4, False)])
def test_tokens_are_part_of_their_levels_tiles_where_every_shape_has_room_for_theirs(token_block, inner):
    plan = Plan(blot(32, 32), dataclasses.replace(ADAPTIVE, token_block=token_block))
    assert plan.token_set(32, 32).within(plan.level_set(32, 32)) is inner


def test_search_of_a_level_takes_little_time_in_shapes():
    """One pooling and a few look-ups a shape: the search touches each shape once."""
    asked = []
    choose(blot(96, 96), lambda shape, tiles, positions: asked.append(shape) or math.prod(shape))
    assert asked == list(apsc.SHAPES)
