"""Sets of one resolution that meet: rows brought from one to another, alike in a recording and in its edits."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige

SIDE = 32
WINDOW = sige.Policy(
    name="window", geometry="window", pyramid="bilinear", block=4, dilation=1, min_resolution=4, overhang=True
)
TILE = sige.Policy(name="tile", geometry="tile", block=4, dilation=1, min_resolution=4)
LEVEL = sige.Policy(name="level", geometry="level", block=4, dilation=1, min_resolution=4)
POLICIES = pytest.mark.parametrize("policy", [WINDOW, TILE, LEVEL], ids=["window", "tile", "level"])


class Joined(nn.Module):
    """A 3x3 convolution, then ``join(net, x)`` of its map with the convolutions ``one``, ``wide`` and ``far``."""

    def __init__(self, join, stride=1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.join = nn.Conv2d(8, 8, 3, padding=1), join
        self.one = nn.Conv2d(8, 8, 1, stride=stride)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, stride=stride)
        self.far = nn.Conv2d(8, 8, 5, padding=2, stride=stride)
        self.up = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.join(self, self.first(x))


JOINS = [
    pytest.param(lambda n, x: n.one(x) + n.wide(x), 1, id="1x1 shortcut"),
    pytest.param(lambda n, x: n.one(x) + n.wide(F.silu(n.wide(x))), 1, id="residual block"),
    pytest.param(lambda n, x: n.far(x) + n.wide(x) * n.one(x), 1, id="three kernels"),
    pytest.param(lambda n, x: n.one(x) + n.wide(x), 2, id="1x1 shortcut of stride 2"),
    pytest.param(lambda n, x: torch.cat([n.far(x), n.one(x)], 1), 2, id="concatenation of stride 2"),
    pytest.param(lambda n, x: n.up(F.interpolate(n.wide(x), scale_factor=2)) + x, 2, id="up again to where it was"),
    pytest.param(lambda n, x: n.one(n.far(x)) - n.one(x), 1, id="1x1 behind another set"),
    pytest.param(lambda n, x: F.interpolate(n.one(x), scale_factor=2) + x, 2, id="up-sampled sum"),
]


def small_mask():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[9:14, 10:17] = True
    return mask


def half_mask():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:, :20] = True
    return mask


def change(policy, join, stride, mask, changed=True):
    """Before, after and dense outputs of an edit, and the session."""
    model, generator = Joined(join, stride).eval(), torch.Generator().manual_seed(1)
    x, other = (torch.randn(1, 8, SIDE, SIDE, generator=generator) for _ in range(2))
    other = torch.where(mask, other, x) if changed else x
    session = sige.Session(model, policy)
    with session.record():
        before = model(x)
    with session.edit(mask) as effect:
        after = model(other)
    with torch.no_grad():
        return before, after, model(other), effect


@POLICIES
@pytest.mark.parametrize("join, stride", JOINS)
def test_an_edit_takes_the_recordings_path(policy, join, stride):
    before, after, _, effect = change(policy, join, stride, small_mask())
    outside = ~effect.active[:, None].expand_as(before)
    same = bool(outside.any()) and torch.equal(after[outside], before[outside])
    assert (same, effect.fallbacks, effect.macs < effect.dense_macs) == (True, [], True)


@POLICIES
@pytest.mark.parametrize("join, stride", JOINS)
def test_positions_that_one_set_lacks_are_the_recordings(policy, join, stride):
    before, after, _, _ = change(policy, join, stride, small_mask(), changed=False)
    assert (after - before).abs().max() < 1e-5


@POLICIES
@pytest.mark.parametrize("join, stride", JOINS)
def test_wide_sets_equal_the_dense_model(policy, join, stride):
    wide = dataclasses.replace(policy, dilation=8, pyramid="max")
    _, after, dense, effect = change(wide, join, stride, small_mask())
    core = F.interpolate(small_mask()[None, None].float(), after.shape[2:])[0, 0] > 0
    assert (after - dense)[..., core].abs().max() < 1e-5


@pytest.mark.parametrize("above", [0.2, 0.62, 0.65, 0.68, 0.72, 0.8, 1.0])
@POLICIES
@pytest.mark.parametrize("join, stride", JOINS)
def test_sets_above_the_dense_share_meet_those_below(policy, join, stride, above):
    """Half of the map and a little more: some sets are full, others are not."""
    shared = dataclasses.replace(policy, dense_above=above, pyramid="max")
    before, after, dense, effect = change(shared, join, stride, half_mask())
    outside = ~effect.active[:, None].expand_as(before)
    near = (after - dense)[..., :2].abs().max() < 1e-5
    assert (torch.equal(after[outside], before[outside]), bool(near), effect.fallbacks) == (True, True, [])


def test_a_set_above_the_dense_share_is_full_where_another_of_its_level_is_not():
    policy = dataclasses.replace(WINDOW, dense_above=0.68, dilation=0, overhang=False)
    plan = sige.plan.Plan(half_mask()[None], policy)
    wide = sige.windows.Window((SIDE, SIDE), (SIDE, SIDE), (5, 5), (1, 1), (2, 2), (1, 1))
    one = dataclasses.replace(wide, kernel=(1, 1), padding=(0, 0))
    assert (plan.conv_set(one).full, plan.conv_set(wide).full) == (False, True)


# -- maps finer than the mask, masks finer than the map --


class Decoder(nn.Module):
    """Twice up by two: a map of 4 times the input's sides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.norm = nn.Conv2d(8, 3, 3, padding=1), nn.GroupNorm(4, 8)

    def forward(self, z):
        x = F.interpolate(self.norm(self.first(z)), scale_factor=2)
        return self.last(F.interpolate(F.silu(self.middle(x)), scale_factor=2))


def decode(policy, mask, side=16, batch=1):
    """Before, after and dense outputs of an edit of the decoder's latents (B, 4, side, side), and the effect."""
    model, generator = Decoder().eval(), torch.Generator().manual_seed(1)
    z, other = (torch.randn(batch, 4, side, side, generator=generator) for _ in range(2))
    cells = sige.masks.reduce_max(mask if mask.dim() == 3 else mask[None], side, side)
    other = torch.where(cells[:, None], other, z)
    session = sige.Session(model, dataclasses.replace(policy, upsample_min_source=4))
    with session.record():
        before = model(z)
    with session.edit(mask) as effect:
        after = model(other)
    with torch.no_grad():
        return before, after, model(other), effect, cells


def spot(side, y, x):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[y, x] = True
    return mask


MASKS = [
    pytest.param(spot(16, 5, 9), id="at the latents"),
    pytest.param(spot(32, 10, 19), id="at the middle level"),
    pytest.param(spot(64, 20, 38), id="at the picture"),
    pytest.param(spot(128, 40, 77), id="8 times the latents"),
    pytest.param(torch.stack([spot(128, 40, 77), spot(128, 3, 3)]), id="one a sample"),
]


@POLICIES
@pytest.mark.parametrize("mask", MASKS)
def test_what_a_decoder_recomputed_is_told_at_the_pictures_resolution(policy, mask):
    batch = len(mask) if mask.dim() == 3 else 1
    before, after, _, effect, cells = decode(policy, mask, batch=batch)
    outside = ~effect.active[:, None].expand_as(before)
    covered = (effect.active | ~sige.masks.reduce_max(cells, 64, 64)).all()
    same = torch.equal(after[outside], before[outside])
    assert (tuple(effect.active.shape), bool(covered), same) == ((batch, 64, 64), True, True)


@pytest.mark.parametrize("mask", MASKS)
def test_a_decoders_wide_sets_equal_the_dense_model(mask):
    wide = dataclasses.replace(LEVEL, dilation=4, block=4)
    batch = len(mask) if mask.dim() == 3 else 1
    _, after, dense, effect, cells = decode(wide, mask, batch=batch)
    inside = sige.masks.reduce_max(cells, 64, 64)[:, None].expand_as(after)
    assert (bool(effect.active.all()), (after - dense)[inside].abs().max() < 1e-4) == (False, True)


@pytest.mark.parametrize("mask", MASKS[:4])
def test_a_mask_costs_at_most_what_the_cells_that_it_touches_do(mask):
    fine, coarse = (decode(LEVEL, case)[3].macs for case in (mask, MASKS[0].values[0]))
    assert 0 < fine <= coarse


@POLICIES
@pytest.mark.parametrize("side", [16, 64, 128])
def test_a_decoder_under_a_full_mask_equals_the_dense_model(policy, side):
    full = dataclasses.replace(policy, norm="incremental")
    _, after, dense, effect, _ = decode(full, torch.ones(side, side, dtype=torch.bool))
    assert ((after - dense).abs().max() < 1e-4, effect.fallbacks) == (True, [])
