"""Self- and cross-attention on the tokens of a map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige import masks
from sige.errors import PolicyError
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


class OneHead(Attention):
    """The same without an axis of heads."""

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        found = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return x + self.out(found).transpose(1, 2).view(x.shape)


CASES = [
    pytest.param(OneHead, id="no heads"),
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
    kinds = [trial(make, mask="small").session.state_bytes().get("kv", 0) for make in (Attention, CASES[3].values[0])]
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


# -- keys and values projected anew at every step --

SELF = [pytest.param(case.values[0], id=case.id) for case in CASES if case.id != "text"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mask", ["full", "small", "wide"])
@pytest.mark.parametrize("make", SELF)
def test_reprojected_keys_and_values_equal_remembered_ones(trial, make, mask, batch):
    two = torch.zeros(2, 32, 32, dtype=torch.bool)
    two[0, 2:5, 27:31] = two[1, 12:25, 4:9] = True
    area = two if batch == 2 and mask == "small" else mask
    again, kept = (trial(make, mask=area, kv=kv, batch=batch, norm="cached") for kv in ("reprojected", "remembered"))
    assert ((again.after - kept.after).abs().max() < 1e-5, again.effect.fallbacks) == (True, [])


def test_reprojected_tokens_are_half_of_what_is_remembered(trial):
    states = {kv: trial(Attention, mask="small", kv=kv).session.state_bytes() for kv in ("reprojected", "remembered")}
    tokens = 256 * 8 * 4
    assert (states["reprojected"]["kv_tokens"], states["remembered"]["kv"]) == (tokens, 2 * tokens)


def test_reprojection_costs_the_products_of_all_positions(trial):
    done = trial(Attention, mask="small", kv="reprojected")
    queries = int(done.effect.active.sum())
    assert done.effect.sparse_macs_by_kind["linear"] == (2 * queries + 2 * 256) * 8 * 8


def test_reprojected_products_are_those_that_ran(trial):
    with MacCounter() as counter:
        done = trial(Attention, mask="small", kv="reprojected")
    assert counter.count.total == done.effect.macs + 2 * done.effect.dense_macs


def test_undo_restores_the_remembered_tokens(trial):
    done = trial(Attention, mask="small", kv="reprojected")
    with done.session.edit(done.effect.active.repeat_interleave(2, 1).repeat_interleave(2, 2)):
        again = done.session.model(done.original)
    assert (again - done.before).abs().max() < 1e-5


class Normed(Attention):
    """Keys are normalised behind their projection, as transformers with qk-norm do it."""

    def heads(self, x):
        return F.layer_norm(super().heads(x), (WIDTH,))


def test_keys_that_are_no_projection_cannot_be_projected_anew(trial):
    message = (
        "^policy kv='reprojected' finds no linear layer that makes keys and values from the same tokens at the root"
    )
    with pytest.raises(PolicyError, match=message):
        trial(Normed, mask="small", kv="reprojected")


class Elsewhere(Attention):
    """Keys are made from other tokens than values."""

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self.heads(self.q(tokens)), self.heads(self.k(tokens * 2)), self.heads(self.v(tokens))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(tokens.shape)


def test_keys_of_other_tokens_than_the_values_cannot_be_projected_anew(trial):
    with pytest.raises(PolicyError, match="from the same tokens at the root module: use kv='remembered'$"):
        trial(Elsewhere, mask="small", kv="reprojected")


class Fused(nn.Module):
    """One linear layer makes queries, keys and values; ``parts`` takes its output (B, N, 24) apart into three (B, heads, N, width)."""

    def __init__(self, parts, bias=True):
        super().__init__()
        self.first, self.qkv, self.parts = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 24, bias), parts

    def forward(self, x):
        x = self.first(x)
        query, key, value = self.parts(self.qkv(x.flatten(2).transpose(1, 2)))
        found = F.scaled_dot_product_attention(query, key, value)
        return x + found.permute(0, 1, 3, 2).reshape(x.shape)


def chunked(x):
    return [part.view(*x.shape[:2], HEADS, WIDTH).transpose(1, 2) for part in x.chunk(3, dim=-1)]


def unbound(x):
    return x.view(*x.shape[:2], 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)


def of_each_head(x):
    return x.view(*x.shape[:2], HEADS, 3 * WIDTH).transpose(1, 2).chunk(3, dim=-1)


def width_first(x):
    return [part.view(*x.shape[:2], WIDTH, HEADS).permute(0, 3, 1, 2) for part in x.chunk(3, dim=-1)]


FUSED = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Fused(chunked), id="chunked"),
        pytest.param(lambda: Fused(chunked, bias=False), id="no bias"),
        pytest.param(lambda: Fused(unbound), id="unbound"),
        pytest.param(lambda: Fused(of_each_head), id="head by head"),
        pytest.param(lambda: Fused(width_first), id="width before heads"),
    ],
)


@FUSED
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mask", ["full", "small", "wide"])
def test_keys_and_values_of_a_fused_layer_are_projected_anew(trial, make, mask, batch):
    again, kept = (trial(make, mask=mask, kv=kv, batch=batch) for kv in ("reprojected", "remembered"))
    assert ((again.after - kept.after).abs().max() < 1e-5, again.effect.fallbacks) == (True, [])


@FUSED
def test_a_fused_layer_projects_keys_and_values_of_other_positions_and_no_queries(trial, make):
    done = trial(make, mask="small", kv="reprojected")
    active = int(done.effect.active.sum())
    assert done.effect.sparse_macs_by_kind["linear"] == (active * 24 + (1024 - active) * 16) * 8


@FUSED
def test_a_fused_layer_remembers_its_tokens_once(trial, make):
    assert trial(make, mask="small", kv="reprojected").session.state_bytes()["kv_tokens"] == 1024 * 8 * 4


@FUSED
def test_a_fused_layer_that_changed_is_projected_as_it_is_now(trial, make):
    done = trial(make, mask="small", kv="reprojected")
    with torch.no_grad():
        done.session.model.qkv.weight[8:].zero_()
    with done.session.edit(torch.ones(32, 32, dtype=torch.bool)):
        whole = done.session.model(done.edited)
    done.session.undo()
    small = torch.zeros(32, 32, dtype=torch.bool)
    small[9:14, 10:17] = True
    with done.session.edit(small) as effect:
        part = done.session.model(done.edited)
    active = effect.active[:, None].expand_as(part)
    # all values are the bias, so attention gives the same at every position and whatever the keys are
    centre = active.clone()
    centre[:, :, :10], centre[:, :, 13:], centre[..., :11], centre[..., 16:] = False, False, False, False
    assert (part - whole)[centre].abs().max() < 1e-5


def test_keys_of_a_fused_layer_that_are_normalised_cannot_be_projected_anew(trial):
    def parts(x):
        query, key, value = chunked(x)
        return query, F.layer_norm(key, (WIDTH,)), value

    with pytest.raises(PolicyError, match="from the same tokens at the root module: use kv='remembered'$"):
        trial(lambda: Fused(parts), mask="small", kv="reprojected")


def test_keys_of_heads_whose_width_comes_first_are_projected_anew(trial):
    """Behind a layer of their own too, the order of features is that of the heads."""

    class Swapped(Attention):
        def heads(self, x):
            return x.view(len(x), -1, WIDTH, HEADS).permute(0, 3, 1, 2)

    again, kept = (trial(Swapped, mask="small", kv=kv) for kv in ("reprojected", "remembered"))
    assert (again.after - kept.after).abs().max() < 1e-5


# -- tiles of tokens --

GEOMETRIES = pytest.mark.parametrize("geometry", ["level", "window", "tile"])


class OnTokens(nn.Module):
    """A 3x3 convolution, a linear layer on its positions as a sequence, a 3x3 convolution of both."""

    def __init__(self, join=True):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.join = nn.Linear(8, 8), join

    def forward(self, x):
        x = self.first(x)
        mixed = self.mix(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)
        return self.last(mixed + x if self.join else mixed)


def tokens_of(done, tile):
    """How many positions lie in tiles of this side that hold an edited position, by the mask at the tokens' level."""
    plan = next(iter(done.session._plans.values()))
    return int(masks.in_tiles(plan.mask_at(32, 32), tile).sum()) * tile * tile


@GEOMETRIES
@pytest.mark.parametrize("tile", [1, 2, 4, 8])
@pytest.mark.parametrize("dilation", [0, 1])
def test_tokens_computed_are_the_tiles_that_hold_an_edited_position(trial, geometry, tile, dilation):
    done = trial(OnTokens, geometry, "small", token_block=tile, dilation=dilation, block=8)
    assert done.effect.sparse_macs_by_kind["linear"] == tokens_of(done, tile) * 8 * 8


def test_tokens_without_a_tile_of_their_own_are_the_levels(trial):
    done = trial(OnTokens, mask="small", token_block=None)
    assert done.effect.sparse_macs_by_kind["linear"] == int(done.effect.active.sum()) * 8 * 8


@GEOMETRIES
@pytest.mark.parametrize("join", [True, False], ids=["beside the map", "alone"])
@pytest.mark.parametrize("tile", [1, 3, 4, 8])
def test_leaving_the_sequence_restores_the_levels_set(trial, geometry, tile, join):
    done = trial(lambda: OnTokens(join), geometry, "small", token_block=tile, dilation=0)
    level = next(iter(done.session._plans.values())).level_set(32, 32).mask()
    assert (torch.equal(done.effect.active, level), done.same_outside(), done.effect.fallbacks) == (True, True, [])


@GEOMETRIES
@pytest.mark.parametrize("tile", [1, 3, 4, 8])
@pytest.mark.parametrize("make", [OnTokens, Attention], ids=["linear", "attention"])
def test_tiles_of_tokens_under_a_full_mask_equal_the_dense_model(trial, make, geometry, tile):
    done = trial(make, geometry, token_block=tile, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@GEOMETRIES
@pytest.mark.parametrize("kv", ["remembered", "reprojected"])
@pytest.mark.parametrize("make", [OnTokens, Attention], ids=["linear", "attention"])
def test_tiles_of_tokens_of_an_unchanged_input_are_the_recordings(trial, make, geometry, kv):
    done = trial(make, geometry, "same", token_block=2, kv=kv)
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", [OnTokens, Attention], ids=["linear", "attention"])
def test_tiles_of_tokens_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide", token_block=4, block=4)
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-5
