"""The search for block shapes inside an edit: exact whatever it finds, and told of the network's own convolutions."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from drawn import blot, window
from torch import nn

import sige
from sige.apsc import OBJECTIVES, SHAPES, choose
from sige.block_costs import CostTable
from sige.errors import PolicyError
from sige.kernels import backends, ops
from sige.plan import Plan

ADAPTIVE = sige.Policy(name="apsc", geometry="tile", block="adaptive", min_resolution=4, norm="dense")


def table(row_seconds=1e-6, tile_seconds=lambda h, w: 1.0):
    """Times in proportion to what is computed: ``row_seconds`` a position, ``tile_seconds`` a tile; all else is nearly free."""
    point = dict(rows=0, columns=0, channels=64)
    rows = [dict(point, operator=name, count=1, seconds=1e-12) for name in ("linear_rows", "around")]
    rows.append(dict(point, operator="conv_rows", count=1, seconds=row_seconds))
    for h, w in SHAPES:
        rows.append(dict(operator="conv_tiles", rows=h, columns=w, channels=64, count=1, seconds=tile_seconds(h, w)))
    return CostTable(rows)


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
    """``costs(table)``: what edits search with, on a backend that gathers taps."""
    with backends.forced("composed"):
        yield lambda made: monkeypatch.setattr(sige.block_costs, "known", lambda device_type: made)


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


@pytest.mark.parametrize("whole, called", [("always", True), ("never", False)])
@pytest.mark.parametrize("block", ["adaptive", ((4, 8),)], ids=["adaptive", "fixed"])
def test_whole_tiles_are_the_policys(costs, monkeypatch, block, whole, called):
    costs(table())
    tiles, convolve = [], ops.conv_tiles
    monkeypatch.setattr(ops, "conv_tiles", lambda *args: tiles.append(args[2]) or convolve(*args))
    policy = dataclasses.replace(ADAPTIVE, block=block, whole_tiles=whole)
    after, dense, _, _ = edited(policy, torch.ones(1, 32, 32, dtype=torch.bool))
    assert (bool(tiles), (after - dense).abs().max() < 1e-5) == (called, True)


def test_whole_tiles_leave_out_shapes_into_which_the_map_does_not_divide(costs):
    costs(table())
    mask = blot(24, 24)
    policy = dataclasses.replace(ADAPTIVE, whole_tiles="always", block_objective="gathered")
    search = edited(policy, mask, side=24)[3]._searches[24, 24]
    assert set(search.choice.costs) == {shape for shape in SHAPES if max(shape) <= 8}


@pytest.mark.parametrize("whole", ["faster", "always", "never"])
@pytest.mark.parametrize("kv", ["reprojected", "remembered"])
def test_a_stock_unet_under_a_full_mask_equals_the_dense_one(unet, small, images, run, relative, whole, kv):
    policy = small("fisedit", block="adaptive", whole_tiles=whole, norm="incremental", kv=kv, dense_modules=())
    session, (original, edited_image, _) = sige.Session(unet, policy), images
    with session.record():
        run(session, original)
    with session.edit(torch.ones(64, 64, dtype=torch.bool)) as effect:
        after = run(session, edited_image)
    with torch.no_grad():
        dense = unet(edited_image, 500).sample
    assert (relative(after, dense) < 1e-4, effect.fallbacks) == (True, [])


@pytest.mark.parametrize("name", ["fisedit", "fisedit_radical"])
def test_fisedits_settings_with_adaptive_blocks_leave_the_rest_alone(unet, small, images, run, name):
    session, (original, edited_image, mask) = sige.Session(unet, small(name, block="adaptive", merge_rate=0.9)), images
    with session.record():
        before = run(session, original)
    with session.edit(mask) as effect:
        after = run(session, edited_image)
    outside = ~effect.active[:, None].expand_as(before)
    same = torch.equal(after[outside], before[outside])
    assert (same, bool(outside.any()), effect.macs < effect.dense_macs) == (True, True, True)


def test_a_recording_from_disk_searches_alike(costs, tmp_path):
    costs(table(tile_seconds=lambda h, w: 1e-9 if h == 8 else 1.0))
    model, x, mask = Levels().eval(), torch.randn(1, 8, 32, 32), blot(32, 32)
    policy = dataclasses.replace(ADAPTIVE, block_choices=((2, 2), (8, 4), (8, 8)))
    session, results = sige.Session(model, policy), []
    with session.record():
        model(x)
    session.save(tmp_path / "saved")
    for used in (session, sige.Session.load(tmp_path / "saved", model)):
        with used.edit(mask):
            results.append(model(torch.where(mask[:, None], x + 1, x)))
        results.append(list(used._plans.values())[0].blocks)
        used.undo()
    assert (torch.equal(results[0], results[2]), results[1]) == (True, results[3])
