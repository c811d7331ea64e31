"""Plans: the mask at every resolution, our nested sets, tokens, and which sets are one family."""

import dataclasses

import pytest
import torch
from drawn import blot, dot, window

import sige
from sige import masks
from sige.errors import PolicyError
from sige.plan import FullPlan, Plan

WINDOW = sige.Policy(name="window", geometry="window", block=4, pyramid="bilinear", min_resolution=1)
LEVEL = sige.Policy(name="level", geometry="level", block=1, min_resolution=1)
TILE = sige.Policy(name="tile", geometry="tile", block=2, min_resolution=1)


# -- the mask at other resolutions --


@pytest.mark.parametrize("pyramid", ["bilinear", "max"])
@pytest.mark.parametrize("side", [64, 32, 16, 8])
def test_empty_mask_stays_empty(pyramid, side):
    plan = Plan(torch.zeros(1, 64, 64, dtype=torch.bool), dataclasses.replace(WINDOW, pyramid=pyramid, dilation=1))
    assert not plan.mask_at(side, side).any()


@pytest.mark.parametrize("pyramid", ["bilinear", "max"])
@pytest.mark.parametrize("y, x", [(0, 0), (100, 37), (255, 255)])
def test_one_pixel_survives_to_8x8_and_stays_one(pyramid, y, x):
    plan = Plan(dot(256, y, x), dataclasses.replace(WINDOW, pyramid=pyramid))
    assert plan.mask_at(8, 8)[0].nonzero().tolist() == [[y // 32, x // 32]]


@pytest.mark.parametrize("batch", [1, 2])
def test_an_unedited_sample_beside_an_edited_one_stays_so(batch):
    mask = torch.cat([dot(64, 3, 3)] + [torch.zeros(1, 64, 64, dtype=torch.bool)] * (batch - 1))
    active = Plan(mask, sige.policy("sige")).mask_at(16, 16)
    assert [bool(sample.any()) for sample in active] == [True, False][:batch]


@pytest.mark.parametrize("size", [(8, 8), (17, 24), (33, 47)], ids=str)
def test_pyramid_of_odd_sides_reaches_its_level(size):
    for pyramid in ("bilinear", "max"):
        mask = Plan(blot(33, 47), dataclasses.replace(WINDOW, pyramid=pyramid)).mask_at(*size)
        assert (tuple(mask.shape), bool(mask.any())) == ((1, *size), True)


def test_dilation_by_level():
    plan = Plan(dot(64, 32, 32), dataclasses.replace(LEVEL, dilation=(3, 1)))
    assert [int(plan.mask_at(side, side).sum()) for side in (64, 32, 16)] == [49, 9, 9]


# -- our sets --


@pytest.mark.parametrize("side, finer", [(128, 256), (64, 128), (32, 64), (16, 32)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_levels_set_covers_the_finer_levels(side, finer, seed):
    plan = Plan(blot(256, 256, seed=seed), dataclasses.replace(sige.policy("incremental"), dense_above=None))
    footprint = masks.reduce_max(plan.level_set(finer, finer).mask(), side, side)
    assert bool((plan.level_set(side, side).mask() | ~footprint).all())


def test_each_levels_set_covers_the_mask():
    mask = blot(256, 256, batch=2)
    plan = Plan(mask, dataclasses.replace(sige.policy("incremental"), dense_above=None))
    assert all(
        bool((plan.level_set(s, s).mask() | ~masks.reduce_max(mask, s, s)).all()) for s in (256, 128, 64, 32, 16)
    )


@pytest.mark.parametrize("side", [256, 64, 16])
def test_a_levels_set_is_made_of_whole_tiles(side):
    plan = Plan(blot(256, 256), dataclasses.replace(sige.policy("incremental"), dense_above=None))
    chosen, tile = plan.level_set(side, side), plan.tile_side(side, side)
    assert (chosen.tile, chosen.count) == ((tile, tile), len(chosen.tile_index) * tile * tile)


@pytest.mark.parametrize("share, full", [(0.2, True), (0.3, False)])
def test_a_level_above_the_dense_share_is_full(share, full):
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, :32, :32] = True  # a quarter
    assert Plan(mask, dataclasses.replace(LEVEL, dense_above=share)).level_set(64, 64).full is full


@pytest.mark.parametrize(
    "size, block, tile", [((33, 47), 4, 1), ((90, 60), 8, 2), ((64, 48), 24, 8), ((64, 48), 16, 16)]
)
def test_tiles_of_ours_are_the_largest_that_divide_a_level(size, block, tile):
    plan = Plan(blot(*size), dataclasses.replace(LEVEL, block=block))
    assert (plan.level_set(*size).tile, plan.tile_side(*size)) == ((tile, tile), tile)


@pytest.mark.parametrize("policy", [LEVEL, WINDOW], ids=["level", "window"])
def test_block_must_be_on_the_map(policy):
    with pytest.raises(PolicyError, match="block=64 does not fit a 33x47 map: choose a smaller one"):
        Plan(blot(33, 47), dataclasses.replace(policy, block=64))


# -- tiles of tokens --


@pytest.mark.parametrize("tile", [1, 2, 4, 8])
@pytest.mark.parametrize("side", [32, 16])
@pytest.mark.parametrize("policy", [WINDOW, LEVEL, TILE], ids=["window", "level", "tile"])
def test_tokens_are_the_tiles_that_hold_an_edited_position(policy, side, tile):
    mask = blot(32, 32, batch=2)
    chosen = Plan(mask, dataclasses.replace(policy, token_block=tile)).token_set(side, side)
    wanted = Plan(mask, policy).mask_at(side, side)
    expected = torch.zeros_like(wanted)
    for b, y, x in wanted.nonzero().tolist():
        expected[b, y // tile * tile : (y // tile + 1) * tile, x // tile * tile : (x // tile + 1) * tile] = True
    assert torch.equal(chosen.mask(), expected)


@pytest.mark.parametrize("policy", [WINDOW, LEVEL, TILE], ids=["window", "level", "tile"])
def test_tokens_without_tiles_are_the_levels(policy):
    plan = Plan(blot(32, 32), policy)
    assert plan.token_set(32, 32) is plan.level_set(32, 32)


# -- families --


@pytest.mark.parametrize(
    "policy, inner",
    [
        pytest.param(dataclasses.replace(WINDOW, token_block=4), True, id="tokens of the level's tiles"),
        pytest.param(dataclasses.replace(WINDOW, token_block=2), True, id="tokens of parts of the level's tiles"),
        pytest.param(dataclasses.replace(TILE, block=4, token_block=2), True, id="tokens inside tiles of the input"),
        pytest.param(dataclasses.replace(WINDOW, block=(4, 2), token_block=2), True, id="a tile for each level"),
        pytest.param(dataclasses.replace(WINDOW, block=(4, 1), token_block=2), False, id="one level's tiles narrower"),
        pytest.param(dataclasses.replace(WINDOW, token_block=8), False, id="tokens of wider tiles"),
        pytest.param(dataclasses.replace(LEVEL, block=4, token_block=4), False, id="ours"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_set_said_to_be_inside_its_levels_is(policy, inner, seed):
    plan = Plan(blot(64, 64, seed=seed), policy)
    tokens, level = plan.token_set(32, 32), plan.level_set(32, 32)
    contained = bool((level.mask() | ~tokens.mask()).all())
    assert (tokens.within(level), contained or not inner) == (inner, True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pointwise_tiles_are_part_of_their_levels(seed):
    plan = Plan(blot(32, 32, seed=seed), WINDOW)
    small, level = plan.conv_set(window((32, 32), 1)), plan.level_set(32, 32)
    assert (small.within(level), bool((level.mask() | ~small.mask()).all())) == (True, True)


SHAPES = [
    pytest.param(window((32, 32), 3), id="3x3"),
    pytest.param(window((32, 32), 1), id="1x1"),
    pytest.param(window((16, 16), 3), id="3x3 of a coarser level"),
    pytest.param(window((32, 32), 3, stride=2), id="stride 2"),
    pytest.param(window((16, 16), 3, stride=2), id="stride 2 of a coarser level"),
    pytest.param(window((32, 32), 3, scale=2), id="behind up-sampling"),
]


@pytest.mark.parametrize("policy", [WINDOW, LEVEL, TILE], ids=["window", "level", "tile"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sets_are_of_one_family_in_a_recording_and_an_edit(policy, shape):
    recording, edit = FullPlan(policy, 1, (32, 32), "cpu"), Plan(blot(32, 32), policy)
    kinds = [(plan.conv_set(shape).kind, plan.level_set(*shape.out_size).kind) for plan in (recording, edit)]
    assert kinds[0] == kinds[1]


# -- masks finer than the map, maps finer than the mask --


@pytest.mark.parametrize("policy", [WINDOW, LEVEL, TILE], ids=["window", "level", "tile"])
def test_a_finer_mask_covers_every_cell_it_touches(policy):
    mask = dot(128, 37, 91)
    plan = Plan(mask, dataclasses.replace(policy, pyramid="max", block=1), size=(16, 16))
    # By the 3x3 window, or the level's own: at least the cell itself.
    assert plan.mask_at(16, 16)[0].nonzero().tolist() == [[4, 11]] and plan.level_set(16, 16).mask()[0, 4, 11]


@pytest.mark.parametrize("side", [16, 32, 64])
def test_levels_finer_than_the_mask_cover_its_cells(side):
    plan = Plan(dot(16, 4, 11), LEVEL, finest=(64, 64))
    expected = dot(16, 4, 11).repeat_interleave(side // 16, 1).repeat_interleave(side // 16, 2)
    assert torch.equal(plan.level_set(side, side).mask(), expected)


@pytest.mark.parametrize("side, finer", [(32, 64), (16, 32), (8, 16)])
def test_levels_around_the_mask_are_nested(side, finer):
    plan = Plan(dot(16, 4, 11), dataclasses.replace(LEVEL, block=2, dilation=(2, 1)), finest=(64, 64))
    footprint = masks.reduce_max(plan.level_set(finer, finer).mask(), side, side)
    assert bool((plan.level_set(side, side).mask() | ~footprint).all())


def test_blocks_and_dilation_start_from_the_input_map():
    policy = dataclasses.replace(LEVEL, block=(4, 2), dilation=(1, 0))
    plan = Plan(dot(128, 37, 91), policy, size=(16, 16))
    assert (plan.tile_side(16, 16), plan.tile_side(8, 8), int(plan.mask_at(16, 16).sum())) == (4, 2, 9)


@pytest.mark.parametrize(
    "missing, full", [pytest.param(0, True, id="all edited"), pytest.param(8, False, id="a corner is not")]
)
def test_with_overhang_a_level_that_is_edited_all_over_is_one_map(missing, full):
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :missing, :missing] = False
    plan = Plan(mask, dataclasses.replace(WINDOW, overhang=True))
    assert plan.level_set(64, 64).full is full
