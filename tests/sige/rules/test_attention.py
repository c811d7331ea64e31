"""Self- and cross-attention on the tokens of a map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige.macs import MacCounter

HEADS, WIDTH = 2, 4


class Attention(nn.Module):
    """A 3x3 convolution, then attention over its positions. ``text``: keys and values of 5 plain tokens instead."""

    def __init__(self, text=False, reduce=1, **options):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.reduce = nn.Conv2d(8, 8, reduce, stride=reduce)
        self.options = options
        if text:
            self.register_buffer("text", torch.randn(2, 5, 8))

    def heads(self, x):
        return x.view(len(x), -1, HEADS, WIDTH).transpose(1, 2)

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        seen = self.text[: len(x)] if hasattr(self, "text") else self.reduce(x).flatten(2).transpose(1, 2)
        query, key, value = self.heads(self.q(tokens)), self.heads(self.k(seen)), self.heads(self.v(seen))
        found = F.scaled_dot_product_attention(query, key, value, **self.options)
        found = self.out(found.transpose(1, 2).reshape(tokens.shape))
        return x + found.transpose(1, 2).view(x.shape)


CASES = [
    pytest.param(Attention, id="self"),
    pytest.param(lambda: Attention(scale=0.1), id="self, own scale"),
    pytest.param(lambda: Attention(text=True), id="text"),
    pytest.param(lambda: Attention(reduce=2), id="keys and values of a smaller map"),
]
# Without a rule of their own: dense, named, counted and right.
DENSE = [
    pytest.param(lambda: Attention(attn_mask=torch.rand(256, 256) > 0.3), id="masked"),
    pytest.param(lambda: Attention(is_causal=True), id="causal"),
]
KV = pytest.mark.parametrize("kv", ["remembered", "active"])


@KV
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, kv, batch):
    done = trial(make, kv=kv, batch=batch)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", DENSE)
def test_full_mask_equals_the_dense_model_through_the_fall_back(trial, make):
    done = trial(make)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, ["scaled_dot_product_attention at the root module"])


@KV
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, kv):
    assert trial(make, mask="small", kv=kv).same_outside()


@pytest.mark.parametrize("make", CASES + DENSE)
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_remembered_keys_and_values_give_active_queries_the_dense_result(trial, make):
    """Unedited positions keep what they had; the edited ones attend to all of them, and to the edited ones anew."""
    done = trial(make, mask="wide")
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-5


def test_active_keys_and_values_are_the_samples_own(trial):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:25, 4:9] = True
    both = trial(Attention, mask=masks, batch=2, kv="active")
    alone = trial(Attention, mask=masks[0], batch=2, kv="active")
    assert (both.after[0] - alone.after[0]).abs().max() < 1e-5


def test_sample_without_an_edit_is_its_recording(trial):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[1, 12:25, 4:9] = True
    done = trial(Attention, mask=masks, batch=2)
    assert (torch.equal(done.after[0], done.before[0]), torch.equal(done.after[1], done.before[1])) == (True, False)


def test_only_self_attention_remembers_keys_and_values(trial):
    kinds = [trial(make, mask="small").session.state_bytes().get("kv", 0) for make in (Attention, CASES[2].values[0])]
    assert kinds == [2 * 256 * 8 * 4, 0]


def test_products_are_counted_for_active_queries(trial):
    done = trial(Attention, mask="small")
    queries = int(done.effect.active.sum())
    assert done.effect.sparse_macs_by_kind["attention"] == queries * 256 * 8 * 2


@pytest.mark.parametrize("mask", ["full", "small"])
@pytest.mark.parametrize("make", CASES + DENSE)
def test_products_are_those_that_ran(trial, make, mask):
    with MacCounter() as counter:
        done = trial(make, mask=mask)
    # the counter saw the recording, the edit and the dense run
    assert counter.count.total == done.effect.macs + 2 * done.effect.dense_macs
