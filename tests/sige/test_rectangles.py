"""Tiles that are no squares: as drawn, and exact through whole networks."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from drawn import blot, window
from torch import nn

import sige
from sige.active_set import ActiveSet
from sige.errors import PolicyError
from sige.kernels import backends, ops
from sige.plan import Plan
from sige.tiling import output_tile

TILE = sige.Policy(name="tile", geometry="tile", block=2, min_resolution=4, norm="dense")
SHAPES = pytest.mark.parametrize("shape", [(2, 8), (8, 2), (4, 16), (16, 8)], ids=["2x8", "8x2", "4x16", "16x8"])


def blocks(*shapes):
    return dataclasses.replace(TILE, block=shapes)


def covered(mask, rows, columns):
    """Every position of the blocks that hold an edited one, block by block."""
    found = torch.zeros_like(mask)
    for b, y, x in mask.nonzero().tolist():
        top, left = y // rows * rows, x // columns * columns
        found[b, top : top + rows, left : left + columns] = True
    return found


@SHAPES
@pytest.mark.parametrize("side", [(32, 32), (36, 44)], ids=["whole tiles", "ragged"])
def test_a_levels_set_is_the_blocks_that_hold_an_edited_position(shape, side):
    mask = blot(*side, batch=2)
    chosen = Plan(mask, blocks(shape)).level_set(*side)
    assert torch.equal(chosen.mask(), covered(mask, *shape))


@pytest.mark.parametrize("side, whole", [((32, 32), True), ((36, 44), False)], ids=["whole tiles", "ragged"])
def test_only_whole_tiles_are_told_as_such(side, whole):
    chosen = Plan(blot(*side), blocks((8, 4))).level_set(*side)
    assert chosen.tile == ((8, 4) if whole else None)


def test_rows_come_tile_after_tile_row_by_row():
    grid = torch.tensor([[[True, False], [False, True]]])
    chosen = ActiveSet.from_tiles(grid, (2, 3), 4, 6)
    assert chosen.index.tolist() == [0, 1, 2, 6, 7, 8, 15, 16, 17, 21, 22, 23]


def test_tile_numbers_count_the_tiles_of_a_map():
    grid = torch.ones(2, 3, 3, dtype=torch.bool)  # a row and a column of tiles more than the map has
    assert ActiveSet.from_tiles(grid, (2, 3), 4, 6).tile_index.tolist() == list(range(8))


@SHAPES
@pytest.mark.parametrize("kernel", [3, 5])
def test_tile_rows_equal_unfold(shape, kernel):
    conv, extent = window((32, 48), kernel), [side + kernel - 1 for side in shape]
    numbers = torch.arange(1.0, 2 * 32 * 48 + 1).view(2, 1, 32, 48)
    expected = F.unfold(numbers, extent, padding=kernel // 2, stride=shape).permute(0, 2, 1)
    plan = Plan(blot(32, 48, batch=2), blocks(shape))
    chosen = plan.conv_set(conv)
    expected = expected.reshape(-1, extent[0] * extent[1]).long() - 1
    assert torch.equal(plan.tile_rows(chosen, conv), expected[chosen.tile_index])


@pytest.mark.parametrize(
    "conv, tile",
    [
        pytest.param(window((32, 32), 3), (4, 8), id="3x3"),
        pytest.param(window((32, 32), 3, stride=2), (2, 4), id="stride 2"),
        pytest.param(window((64, 64), 3, scale=2), (8, 16), id="behind up-sampling"),
        pytest.param(dataclasses.replace(window((32, 32), 3), stride=(1, 2)), (4, 4), id="unequal strides"),
    ],
)
def test_a_convolutions_output_tile(conv, tile):
    assert output_tile(conv, (4, 8)) == tile


def test_a_shape_for_each_halving():
    plan = Plan(blot(32, 32), blocks((4, 16), 8, (2, 4)))
    assert [plan.block_at(side, side) for side in (32, 16, 8, 4)] == [(4, 16), (8, 8), (2, 4), (2, 4)]


# -- through networks --


def edited(model, policy, mask, side):
    """Before, after and dense outputs of an edit of (1, 8, side, side), and the effect."""
    generator = torch.Generator().manual_seed(1)
    x, other = (torch.randn(1, 8, side, side, generator=generator) for _ in range(2))
    other = torch.where(mask, other, x)
    session = sige.Session(model, policy)
    with session.record():
        before = model(x)
    with session.edit(mask) as effect:
        after = model(other)
    with torch.no_grad():
        return before, after, model(other), effect


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(8, 24, 3, padding=1).eval()


class Levels(nn.Module):
    """Down by two and up again, a norm and a shortcut: the parts that a U-Net is made of."""

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


@SHAPES
def test_a_convolution_equals_the_dense_one_at_its_tiles_and_the_recording_elsewhere(shape):
    mask = blot(48, 48)
    before, after, dense, effect = edited(convolution(), blocks(shape), mask[0], 48)
    expected = torch.where(covered(mask, *shape)[:, None], dense, before)
    assert ((after - expected).abs().max() < 1e-5, effect.fallbacks) == (True, [])


@SHAPES
def test_a_convolution_costs_its_tiles(shape):
    mask = blot(48, 48)
    _, _, _, effect = edited(convolution(), blocks(shape), mask[0], 48)
    assert effect.macs == int(covered(mask, *shape).sum()) * 9 * 8 * 24


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 8)], ids=["8x16", "16x8", "8x8"])
def test_wide_tiles_convolved_whole_equal_the_dense_convolution(shape, monkeypatch):
    called, whole = [], ops.conv_tiles
    monkeypatch.setattr(ops, "conv_tiles", lambda *args: called.append(args[2]) or whole(*args))
    with backends.forced("composed"):  # which gathers taps: there they pay
        _, after, dense, _ = edited(convolution(), blocks(shape), torch.ones(128, 128, dtype=torch.bool), 128)
    assert (called, (after - dense).abs().max() < 1e-5) == ([shape], True)


@SHAPES
@pytest.mark.parametrize("norm", ["dense", "incremental"])
def test_a_network_under_a_full_mask_equals_the_dense_one(shape, norm):
    policy = dataclasses.replace(blocks(shape), norm=norm)
    _, after, dense, effect = edited(Levels().eval(), policy, torch.ones(32, 32, dtype=torch.bool), 32)
    assert ((after - dense).abs().max() < 1e-5, effect.fallbacks) == (True, [])


@SHAPES
@pytest.mark.parametrize("norm", ["dense", "incremental", "cached"])
def test_outside_its_tiles_a_network_gives_the_recording_bit_for_bit(shape, norm):
    before, after, _, effect = edited(
        Levels().eval(), dataclasses.replace(blocks(shape), norm=norm), blot(32, 32)[0], 32
    )
    outside = ~effect.active[:, None].expand_as(before)
    assert (bool(outside.any()), torch.equal(after[outside], before[outside])) == (True, True)


@SHAPES
def test_statistics_from_remembered_sums_are_those_of_the_whole_map(shape):
    mask = blot(32, 32)
    model = nn.Sequential(nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16)).eval()  # pointwise: nothing reads beyond the tiles
    policy = dataclasses.replace(blocks(shape), norm="incremental")
    before, after, dense, _ = edited(model, policy, mask[0], 32)
    expected = torch.where(covered(mask, *shape)[:, None], dense, before)
    assert (after - expected).abs().max() < 1e-5


def test_a_square_written_as_a_pair_is_the_same_policy_bit_for_bit():
    mask = blot(32, 32)[0]
    pair, side = (edited(Levels().eval(), policy, mask, 32)[1] for policy in (blocks((4, 4)), blocks(4)))
    assert torch.equal(pair, side)


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"block": ((4, 8),), "geometry": "level"}, r"has pairs, which need geometry='tile', not 'level'", id="level"),
        pytest.param({"block": ((4, 8),), "geometry": "window"}, r"has pairs, which need geometry='tile', not 'window'", id="window"),
        pytest.param({"block": ((4, 8, 2),)}, r"block=\(\(4, 8, 2\),\) must be a whole number of at least 1", id="three sides"),
        pytest.param({"block": ((4, 0),)}, r"block=\(\(4, 0\),\) must be .* each also a pair \(rows, columns\)", id="no columns"),
        pytest.param({"block": ()}, r"block=\(\) must be a whole number", id="empty"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(PolicyError, match=message):
        dataclasses.replace(TILE, **changes)


def test_a_block_must_be_on_the_map():
    with pytest.raises(PolicyError, match=r"block=\(4, 64\) does not fit a 32x32 map: choose a smaller one"):
        Plan(blot(32, 32), blocks((4, 64)))
