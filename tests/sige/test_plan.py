"""Plans: SIGE's tiles against their definition, our nested sets, and the rows that a convolution reads."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige import masks
from sige.active_set import ActiveSet
from sige.datasets import registry, samples
from sige.errors import PolicyError
from sige.plan import FullPlan, Plan, Window, canonical_window

WINDOW = sige.Policy(name="window", geometry="window", block=4, pyramid="bilinear", min_resolution=1)
LEVEL = sige.Policy(name="level", geometry="level", block=1, min_resolution=1)


def blot(height, width, batch=1, seed=0):
    """A mask with a rectangle, lone pixels and pixels on the last row and column."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, height, width, generator=generator) > 0.995
    mask[:, height // 3 : height // 3 + 4, width // 2 : width // 2 + 7] = True
    mask[0, -1, width // 4] = mask[0, height // 2, -1] = True
    return mask


def dot(side, y, x):
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[0, y, x] = True
    return mask


def window(size, kernel, stride=1, padding=None, dilation=1, scale=1):
    padding = dilation * (kernel // 2) if padding is None else padding
    out = tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in size)
    return Window(size, out, (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), scale)


def tiles_by_definition(mask, window, block):
    """An output tile is active where any pixel that it reads, between its first and its last tap, is in the mask."""
    tile = (block - 1) // window.stride[0] + 1
    batch, active = mask.shape[0], torch.zeros(mask.shape[0], *window.out_size, dtype=torch.bool)
    for b in range(batch):
        for top in range(0, window.out_size[0], tile):
            for left in range(0, window.out_size[1], tile):
                span = []
                for axis, start in ((0, top), (1, left)):
                    first = start * window.stride[axis] - window.padding[axis]
                    last = first + (tile - 1) * window.stride[axis] + window.dilation[axis] * (window.kernel[axis] - 1)
                    span.append(slice(max(first, 0), max(last + 1, 0)))
                if mask[b, span[0], span[1]].any():
                    active[b, top : top + tile, left : left + tile] = True
    return active


@pytest.mark.parametrize("overhang", [True, False], ids=["overhang", "no overhang"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)], ids=["32x32", "33x47"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_window_tiles_equal_their_definition(kernel, stride, block, size, overhang):
    mask = blot(*size, batch=2)
    policy = dataclasses.replace(WINDOW, block=block, overhang=overhang)
    chosen = Plan(mask, policy).conv_set(window(size, kernel, stride))
    assert torch.equal(chosen.mask(), tiles_by_definition(mask, window(size, kernel, stride), block))


def test_window_tiles_of_a_dilated_convolution():
    mask, shape = blot(33, 47), window((33, 47), 3, dilation=3)
    assert torch.equal(Plan(mask, WINDOW).conv_set(shape).mask(), tiles_by_definition(mask, shape, 4))


def test_window_tiles_of_an_unpadded_down_sampling_convolution():
    mask = blot(32, 32)
    shape = Window((32, 32), (16, 16), (3, 3), (2, 2), (0, 0), (1, 1))  # padded by one below and to the right
    assert torch.equal(Plan(mask, WINDOW).conv_set(shape).mask(), tiles_by_definition(mask, shape, 4))


def test_a_block_that_hangs_over_is_counted():
    """SIGE's grid has floor((H + padding)/tile) + 1 rows: the last can lie outside and its window meet the mask."""
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, -1] = True
    counts = [
        Plan(mask, dataclasses.replace(WINDOW, overhang=over)).conv_set(canonical_window(32, 32))
        for over in (True, False)
    ]
    assert [chosen.computed // 16 for chosen in counts] == [18, 8]  # 18, as measured on the reference engine


def test_unequal_strides_are_refused():
    shape = Window((32, 32), (32, 16), (3, 3), (1, 2), (1, 1), (1, 1))
    with pytest.raises(PolicyError, match=r"geometry='window' needs equal strides, not \(1, 2\): use geometry='level'"):
        Plan(blot(32, 32), WINDOW).conv_set(shape)


def toy_mask():
    """SIGE's example mask (15.45 %) and its active blocks; else a drawn one, counted by definition."""
    for folder in samples.search_path():
        if (folder / "masks.npz").is_file():
            return torch.from_numpy(np.load(folder / "masks.npz")["toy"]), 783
    mask = registry.load("brush-15.5").mask
    grid = F.pad(mask[None, None].float(), (1, 4, 1, 4))
    return mask, int((F.max_pool2d(grid, 6, 4) > 0).sum())


TOY = dataclasses.replace(sige.policy("sige"), dilation=0, min_resolution=1)


def test_toy_convolution_has_its_active_blocks():
    mask, blocks = toy_mask()
    chosen = Plan(mask[None], TOY).conv_set(canonical_window(256, 256))
    # Of the sample's 783 blocks 739 lie on the map; 44 lie beyond its edges, computed all the same.
    assert (chosen.computed, chosen.count <= chosen.computed) == (blocks * 16, True)


def test_toy_convolution_costs_its_blocks():
    mask, blocks = toy_mask()
    conv = nn.Conv2d(16, 32, 3, padding=1).eval()
    session, x = sige.Session(conv, TOY), torch.randn(1, 16, 256, 256)
    with session.record():
        conv(x)
    with session.edit(mask) as effect:
        conv(torch.where(mask, x + 1, x))
    macs = 57.73e6 if blocks == 783 else blocks * 16 * 9 * 16 * 32
    assert (effect.macs == pytest.approx(macs, rel=5e-3), effect.dense_macs) == (True, 256 * 256 * 9 * 16 * 32)


def test_toy_convolution_equals_the_dense_one():
    mask, _ = toy_mask()
    conv = nn.Conv2d(16, 32, 3, padding=1).eval()
    session, x = sige.Session(conv, TOY), torch.randn(1, 16, 256, 256)
    edited = torch.where(mask, x + 1, x)
    with session.record():
        conv(x)
    with session.edit(mask):
        got = conv(edited)
    with torch.no_grad():
        assert (got - conv(edited)).abs().max() < 1e-5


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
    assert (chosen.tile, chosen.count) == (tile, len(chosen.tile_index) * tile * tile)


@pytest.mark.parametrize("share, full", [(0.2, True), (0.3, False)])
def test_a_level_above_the_dense_share_is_full(share, full):
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, :32, :32] = True  # a quarter
    assert Plan(mask, dataclasses.replace(LEVEL, dense_above=share)).level_set(64, 64).full is full


def test_block_of_ours_must_divide_the_mask():
    message = "block=4 does not fit a 33x47 map: choose a divisor of both sides, such as 1"
    with pytest.raises(PolicyError, match=message):
        Plan(blot(33, 47), dataclasses.replace(LEVEL, block=4))


def test_block_of_sige_must_be_on_the_map():
    with pytest.raises(PolicyError, match="block=64 does not fit a 33x47 map: choose a smaller one"):
        Plan(blot(33, 47), dataclasses.replace(WINDOW, block=64))


# -- rows that a convolution reads --


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(window((9, 11), 3), id="3x3"),
        pytest.param(window((9, 11), 1), id="1x1"),
        pytest.param(window((9, 11), 5, stride=2), id="5x5 stride 2"),
        pytest.param(window((9, 11), 3, padding=0), id="unpadded"),
        pytest.param(window((9, 11), 3, dilation=2), id="dilation 2"),
        pytest.param(window((8, 12), 3, scale=2), id="behind up-sampling"),
    ],
)
@pytest.mark.parametrize("which", ["everything", "tiles"])
def test_window_rows_equal_unfold(shape, which):
    height, width = (side // shape.scale for side in shape.size)
    numbers = torch.arange(1.0, 2 * height * width + 1).view(2, 1, height, width)
    numbers = F.interpolate(numbers, scale_factor=shape.scale)
    taps = F.unfold(numbers, shape.kernel, shape.dilation, shape.padding, shape.stride)
    expected = taps.permute(0, 2, 1).reshape(-1, shape.kernel[0] ** 2).long() - 1
    plan = Plan(blot(*shape.size, batch=2), dataclasses.replace(WINDOW, block=2))
    chosen = ActiveSet.everything(2, *shape.out_size) if which == "everything" else plan.conv_set(shape)
    assert torch.equal(plan.window_rows(chosen, shape), expected[chosen.positions])


def test_window_rows_of_asymmetric_padding_equal_unfold():
    shape = Window((8, 8), (8, 8), (4, 4), (1, 1), (1, 2), (1, 1))  # padded by 1 above, 2 below, 2 left, 1 right
    numbers = F.pad(torch.arange(1.0, 65).view(1, 1, 8, 8), (2, 1, 1, 2))
    expected = F.unfold(numbers, 4)[0].t().long() - 1
    plan = Plan(blot(8, 8), dataclasses.replace(WINDOW, block=2))
    assert torch.equal(plan.window_rows(ActiveSet.everything(1, 8, 8), shape), expected)


def test_window_rows_of_the_overhang_follow_the_sets_own():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, -1] = True
    plan = Plan(mask, dataclasses.replace(WINDOW, overhang=True))
    chosen = plan.conv_set(canonical_window(32, 32))
    rows = plan.window_rows(chosen, canonical_window(32, 32))
    assert (len(rows), int(rows.max()) < 32 * 32) == (chosen.computed, True)


def test_window_rows_are_made_once():
    plan = Plan(blot(32, 32), WINDOW)
    chosen = plan.conv_set(canonical_window(32, 32))
    assert plan.window_rows(chosen, canonical_window(32, 32)) is plan.window_rows(chosen, canonical_window(32, 32))


@pytest.mark.parametrize(
    "shape, pointwise, canonical",
    [
        pytest.param(window((8, 8), 1), True, False, id="1x1"),
        pytest.param(window((8, 8), 3), False, True, id="3x3"),
        pytest.param(window((8, 8), 1, stride=2), False, False, id="1x1 stride 2"),
        pytest.param(window((8, 8), 3, dilation=2), False, False, id="dilated"),
        pytest.param(window((8, 8), 1, scale=2), False, False, id="1x1 behind up-sampling"),
    ],
)
def test_kinds_of_window(shape, pointwise, canonical):
    assert (shape.pointwise, shape.canonical) == (pointwise, canonical)


@pytest.mark.parametrize(
    "shape", [window((12, 16), 3), window((12, 16), 5), window((12, 16), 3, scale=2)], ids=["3x3", "5x5", "up"]
)
def test_tile_rows_equal_unfold(shape):
    height, width = (side // shape.scale for side in shape.size)
    numbers = F.interpolate(
        torch.arange(1.0, 2 * height * width + 1).view(2, 1, height, width), scale_factor=shape.scale
    )
    extent, before = 4 + shape.kernel[0] - 1, shape.padding[0]
    expected = F.unfold(numbers, extent, padding=before, stride=4).permute(0, 2, 1).reshape(-1, extent**2).long() - 1
    plan = Plan(blot(*shape.size, batch=2), WINDOW)
    chosen = plan.conv_set(shape)
    assert torch.equal(plan.tile_rows(chosen, shape), expected[chosen.tile_index])


# -- tiles of the input, without the window's margin --

TILE = sige.Policy(name="tile", geometry="tile", block=2, min_resolution=1)


def input_tiles_by_definition(mask, shape, block):
    """Tiles of the input before up-sampling that hold an edited position, as the outputs that stand at their place."""
    height, width = (side // shape.scale for side in shape.size)
    active = torch.zeros(mask.shape[0], *shape.out_size, dtype=torch.bool)
    for b, y, x in mask.nonzero().tolist():
        spans = []
        for place, factor in ((y, mask.shape[1] // height), (x, mask.shape[2] // width)):
            first = place // factor // block * block
            spans.append(
                slice(first * shape.scale // shape.stride[0], (first + block) * shape.scale // shape.stride[0])
            )
        active[b, spans[0], spans[1]] = True
    return active


TILED = [
    pytest.param(window((32, 32), 3), id="3x3"),
    pytest.param(window((32, 32), 1), id="1x1"),
    pytest.param(window((16, 16), 3), id="3x3 of a coarser level"),
    pytest.param(window((32, 32), 3, stride=2), id="stride 2"),
    pytest.param(window((16, 16), 3, stride=2), id="stride 2 of a coarser level"),
    pytest.param(window((32, 32), 3, scale=2), id="behind up-sampling"),
]


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("shape", TILED)
def test_input_tiles_equal_their_definition(shape, block):
    mask = blot(32, 32, batch=2)
    chosen = Plan(mask, dataclasses.replace(TILE, block=block)).conv_set(shape)
    assert torch.equal(chosen.mask(), input_tiles_by_definition(mask, shape, block))


def test_input_tiles_of_an_up_sampled_map_are_twice_as_wide():
    plan = Plan(dot(32, 5, 9), TILE)
    up, level = plan.conv_set(window((32, 32), 3, scale=2)), plan.level_set(32, 32)
    assert (up.tile, up.count, level.tile, level.count) == (4, 16, 2, 4)


def test_input_tiles_of_a_strided_convolution_are_half_as_wide():
    chosen = Plan(dot(32, 5, 9), TILE).conv_set(window((32, 32), 3, stride=2))
    assert (chosen.tile, chosen.mask()[0].nonzero().tolist()) == (1, [[2, 4]])


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


@pytest.mark.parametrize("policy", [WINDOW, LEVEL, TILE], ids=["window", "level", "tile"])
@pytest.mark.parametrize("shape", TILED)
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
