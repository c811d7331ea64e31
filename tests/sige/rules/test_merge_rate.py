"""Attention mixed with what was recorded: r * new + (1 - r) * recorded, and the mixture is what the next edit finds."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.errors import PolicyError


class Attention(nn.Module):
    """Self-attention of one head, and what it gave."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.parts = nn.Conv2d(8, 8, 1), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        tokens = self.first(x).flatten(2).transpose(1, 2)
        query, key, value = (part(tokens)[:, None] for part in self.parts)
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.fixture
def edits(policy):
    """``edits(rate, ...)``: outputs of the recording, of each edit (committed one after another), and the session."""

    def run(rate, kv="remembered", number=1, batch=1, **changes):
        generator = torch.Generator().manual_seed(0)
        x, mask = torch.randn(batch, 8, 32, 32, generator=generator), torch.zeros(32, 32, dtype=torch.bool)
        mask[8:16, 12:20] = True
        session = sige.Session(Attention().eval(), policy("level", dilation=0, kv=kv, merge_rate=rate, **changes))
        with session.record():
            outputs = [session.model(x)]
        for step in range(1, number + 1):
            with session.edit(mask) as effect:
                outputs.append(session.model(torch.where(mask, x + step, x)))
            session.commit()
        return outputs, effect, session

    return run


RATES = pytest.mark.parametrize("rate", [0.9, 0.5, 0.1])


@RATES
@pytest.mark.parametrize("kv", ["remembered", "reprojected", "active"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_output_is_the_mixture_where_the_edit_is(edits, rate, kv, batch):
    (before, new), effect, _ = edits(1.0, kv, batch=batch)
    (_, mixed), _, _ = edits(rate, kv, batch=batch)
    expected = torch.where(effect.active[:, None], rate * new + (1 - rate) * before, before)
    assert (mixed - expected).abs().max() < 1e-5


@RATES
def test_outside_the_edit_it_is_the_recording_bit_for_bit(edits, rate):
    (before, mixed), effect, _ = edits(rate)
    outside = ~effect.active[:, None].expand_as(before)
    assert torch.equal(mixed[outside], before[outside])


@RATES
def test_a_second_edit_is_mixed_with_the_first(edits, rate):
    (_, _, plain), effect, _ = edits(1.0, number=2)
    (_, first, second), _, _ = edits(rate, number=2)
    expected = rate * plain + (1 - rate) * first
    active = effect.active[:, None].expand_as(plain)
    assert (second - expected)[active].abs().max() < 1e-5


@RATES
def test_undo_takes_the_mixture_back(policy, rate):
    x, mask = torch.randn(1, 8, 32, 32), torch.zeros(32, 32, dtype=torch.bool)
    mask[8:16, 12:20] = True
    session = sige.Session(Attention().eval(), policy("level", merge_rate=rate))
    with session.record():
        session.model(x)
    results = []
    for _ in range(2):
        with session.edit(mask):
            results.append(session.model(torch.where(mask, x + 1, x)))
        session.undo()
    assert torch.equal(*results)


def test_a_rate_of_one_remembers_nothing_for_it(edits):
    kinds = [edits(rate)[2].state_bytes().get("attention_output", 0) for rate in (1.0, 0.9)]
    assert kinds == [0, 32 * 32 * 8 * 4]


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, "0.9"])
def test_rates_that_cannot_be(policy, rate):
    with pytest.raises(PolicyError, match=rf"merge_rate={rate!r} must be a share in \(0, 1\]"):
        dataclasses.replace(policy(), merge_rate=rate)
