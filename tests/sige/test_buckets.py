"""Active sets filled up to buckets: never less than the mask wants, as many in each sample, the nearest first."""

import dataclasses

import pytest
import torch

import sige
from sige.buckets import capacity, filled
from sige.plan import Plan

LEVELS = [(64, 64), (32, 32), (16, 16)]


def grid(*places, side=8, batch=1):
    tiles = torch.zeros(batch, side, side, dtype=torch.bool)
    for place in places:
        tiles[place] = True
    return tiles


@pytest.mark.parametrize("growth", [1.1, 1.5, 2.0])
def test_a_bucket_holds_what_it_is_asked_to_hold(growth):
    assert all(count <= capacity(count, growth) for count in range(500))


@pytest.mark.parametrize("growth", [1.5, 2.0])
def test_a_bucket_is_less_than_the_growth_too_large(growth):
    assert all(capacity(count, growth) < growth * count for count in range(2, 500))


def test_nothing_needs_no_bucket():
    assert (capacity(0, 2.0), bool(filled(grid(), 2.0).any())) == (0, False)


@pytest.mark.parametrize("seed", range(5))
def test_wanted_tiles_stay(seed):
    tiles = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(seed)) < 0.2
    assert bool((filled(tiles, 2.0) | ~tiles).all())


def test_each_sample_gets_as_many():
    tiles = grid((0, slice(2, 4), slice(2, 5)), (1, 7, 7), batch=3)
    assert filled(tiles, 2.0).sum((1, 2)).tolist() == [8, 8, 8]


def test_spare_places_go_to_the_nearest_tiles():
    found = filled(grid((0, 0, 0), (0, 7, 7), (0, 7, 6), (0, 6, 6), (0, 6, 7)), 2.0).nonzero()[:, 1:]
    away = [min((place - torch.tensor(end)).abs().max() for end in ((0, 0), (6, 6))) for place in found]
    assert (len(found), max(away) <= 1) == (8, True)


def test_no_more_than_there_are():
    assert bool(filled(grid((0, slice(0, 7))), 2.0).all())


def rectangle(top, left, height, width, side=64):
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


def plans(small, *masks, **changes):
    policy = small("incremental", bucket=2.0, dense_above=None, **changes)
    made = [Plan(mask, policy) for mask in masks]
    for plan in made:
        plan.prepare({("level", *level): None for level in LEVELS})
    return made


def test_masks_of_about_one_size_have_plans_of_one_shape(small):
    masks = [rectangle(17, 29, 12, 12), rectangle(23, 14, 11, 13), rectangle(30, 35, 8, 9)]
    assert len({plan.shape for plan in plans(small, *masks)}) == 1


def test_a_coarser_level_covers_the_finer_one(small):
    (plan,) = plans(small, rectangle(20, 22, 8, 8))
    finer, coarser = (plan.level_set(*level).mask() for level in LEVELS[:2])
    assert bool((coarser.repeat_interleave(2, 1).repeat_interleave(2, 2) | ~finer).all())


def test_what_the_mask_wants_is_computed(small):
    mask = rectangle(20, 22, 8, 8)
    (plan,) = plans(small, mask)
    bare = Plan(mask, dataclasses.replace(plan.policy, bucket=None))
    assert all(bool((plan.level_set(*at).mask() | ~bare.level_set(*at).mask()).all()) for at in LEVELS)


def test_tokens_are_filled_up_too(small):
    one, other = plans(small, rectangle(16, 16, 8, 20), rectangle(16, 16, 12, 16), token_block=2, dilation=0)
    assert one.token_set(32, 32).count == other.token_set(32, 32).count == 4 * 16


def rectangles(count):
    """Masks (1, 256, 256) of random rectangles with sides of 16 to 47 pixels."""
    generator = torch.Generator().manual_seed(0)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    for _ in range(count):
        height, width = number(16, 48), number(16, 48)
        yield rectangle(number(0, 256 - height), number(0, 256 - width), height, width, side=256)


@pytest.fixture(scope="module")
def counts():
    """For each bucket the active positions of 200 masks at every level: (200, 5)."""
    found, masks = {}, list(rectangles(200))
    for bucket in (None, 2.0):
        plans = [Plan(mask, dataclasses.replace(sige.policy("incremental"), bucket=bucket)) for mask in masks]
        found[bucket] = [[plan.level_set(side, side).count for side in (256, 128, 64, 32, 16)] for plan in plans]
    return found


@pytest.mark.parametrize(
    "bucket, least, most", [pytest.param(None, 0, 10, id="without"), pytest.param(2.0, 160, 200, id="powers of two")]
)
def test_how_many_of_200_masks_have_the_shape_of_two_before_them(counts, bucket, least, most):
    shapes = [tuple(row) for row in counts[bucket]]
    assert least <= sum(shapes[:place].count(shape) > 1 for place, shape in enumerate(shapes)) <= most


@pytest.mark.parametrize("level, most", enumerate([1.5, 1.6, 2.1, 2.1, 2.9]))
def test_positions_that_powers_of_two_add(counts, level, most):
    filled_up, bare = (sum(row[level] for row in counts[bucket]) for bucket in (2.0, None))
    assert 1 < filled_up / bare < most
