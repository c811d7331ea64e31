"""Active tiles of a convolution against their definition: SIGE's, by the window, and FISEdit's, by the input."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import blot, dot, window
from torch import nn

import sige
from sige.datasets import registry, samples
from sige.errors import PolicyError
from sige.plan import Plan
from sige.windows import Window, canonical_window

WINDOW = sige.Policy(name="window", geometry="window", block=4, pyramid="bilinear", min_resolution=1)
TILE = sige.Policy(name="tile", geometry="tile", block=2, min_resolution=1)


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


# -- tiles of the input, without the window's margin --


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
    assert (up.tile, up.count, level.tile, level.count) == ((4, 4), 16, (2, 2), 4)


def test_input_tiles_of_a_strided_convolution_are_half_as_wide():
    chosen = Plan(dot(32, 5, 9), TILE).conv_set(window((32, 32), 3, stride=2))
    assert (chosen.tile, chosen.mask()[0].nonzero().tolist()) == ((1, 1), [[2, 4]])
