"""Windows: the rows that a convolution reads at positions and at tiles, against ``unfold``."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from drawn import blot, window

import sige
from sige.active_set import ActiveSet
from sige.plan import Plan
from sige.windows import Window, canonical_window

WINDOW = sige.Policy(name="window", geometry="window", block=4, pyramid="bilinear", min_resolution=1)


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
