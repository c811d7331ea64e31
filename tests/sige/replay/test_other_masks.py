"""Programs traced under one mask give, under another whose plan has the same shape, the bits that the model's own Python gives."""

import dataclasses

import pytest
import torch
from torch import nn

import sige

POLICIES = ["incremental", "sige", "sige_public", "pixel", "fisedit", "fisedit_radical"]
TIME = torch.tensor(500)


def rectangles(*places, side=64):
    """Mask (B, side, side): one rectangle (top, left, height, width) a sample."""
    mask = torch.zeros(len(places), side, side, dtype=torch.bool)
    for sample, (top, left, height, width) in enumerate(places):
        mask[sample, top : top + height, left : left + width] = True
    return mask


def edits(model, policy, masks, replay, channels=3):
    """Outputs and active maps of edits of two steps by one mask after the other, and how many steps of each were replayed."""
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, len(masks[0]), channels, *masks[0].shape[1:], generator=generator)
    session, found, replayed = sige.Session(model, policy, replay=replay), [], []
    with session.record():
        for _ in range(2):
            model(x, TIME)
    for mask in masks:
        before = session.replayed_steps
        with session.edit(mask) as effect:
            found += [model(torch.where(mask[:, None], other, x), TIME)[0] for _ in range(2)]
        found.append(effect.active)
        replayed.append(session.replayed_steps - before)
    return found, replayed


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


MOVED = [rectangles((20, 20, 8, 8)), rectangles((36, 36, 8, 8)), rectangles((20, 36, 8, 8))]
CROSSED = [
    rectangles((20, 20, 8, 8), (20, 36, 8, 8)),
    rectangles((36, 36, 8, 8), (36, 20, 8, 8)),
    rectangles((20, 36, 8, 8), (20, 20, 8, 8)),
]


@pytest.mark.parametrize("masks", [pytest.param(MOVED, id="one sample"), pytest.param(CROSSED, id="two samples")])
@pytest.mark.parametrize("name", POLICIES)
def test_a_mask_moved_by_whole_tiles_is_replayed_from_the_first_step_on(unet, small, name, masks):
    plain, _ = edits(unet, small(name), masks, False)
    found, replayed = edits(unet, small(name), masks, True)
    assert (replayed, same(plain, found)) == ([0, 2, 2], True)


ANY = [rectangles((17, 29, 12, 12)), rectangles((23, 14, 11, 13)), rectangles((30, 35, 8, 9))]


def test_masks_in_one_bucket_share_their_programs(unet, small):
    policy = small("incremental", bucket=2.0)
    plain, _ = edits(unet, policy, ANY, False)
    found, replayed = edits(unet, policy, ANY, True)
    assert (replayed, same(plain, found)) == ([0, 2, 2], True)


def test_masks_of_other_shapes_do_not(unet, small):
    _, replayed = edits(unet, small("incremental"), [MOVED[0], rectangles((8, 8, 30, 40)), MOVED[1]], True)
    assert replayed == [0, 0, 2]


class Places(nn.Module):
    """A convolution, and row numbers that it takes from a list of its own: known to no plan, the same for all."""

    def __init__(self, own):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.own = nn.Conv2d(3, 3, 3, padding=1), own
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.hidden = [torch.tensor([2, 0, 1])]

    def forward(self, x, time):
        order = self.order if self.own else self.hidden[0]
        return (self.conv(x) * torch.arange(3.0)[order].view(1, 3, 1, 1),)


@pytest.mark.parametrize(
    "own, expected",
    [pytest.param(True, [0, 2, 2], id="a buffer"), pytest.param(False, [0, 0, 0], id="unknown numbers")],
)
def test_row_numbers_of_unknown_origin_bind_a_program_to_its_mask(small, own, expected):
    model = Places(own)
    plain, _ = edits(model, small("pixel"), MOVED, False)
    found, replayed = edits(model, small("pixel"), MOVED, True)
    assert (replayed, same(plain, found)) == (expected, True)


def test_a_bound_program_is_replayed_under_its_own_mask(small):
    _, replayed = edits(Places(False), small("pixel"), [MOVED[0], MOVED[0], MOVED[1]], True)
    assert replayed == [0, 2, 0]


@pytest.mark.parametrize("bucket", [None, 2.0])
def test_a_full_mask_stays_exact(unet, small, bucket):
    policy = dataclasses.replace(small("incremental"), bucket=bucket, dense_above=None)
    everything = torch.ones(1, 64, 64, dtype=torch.bool)
    found, _ = edits(unet, policy, [everything], True)
    generator = torch.Generator().manual_seed(0)
    dense = unet(torch.randn(2, 1, 3, 64, 64, generator=generator)[1], TIME).sample
    assert (found[0] - dense).norm() / dense.norm() < 1e-5
