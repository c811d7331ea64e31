"""Linear attention: the sums over all positions are those of the edited map, at the cost of the edited rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.macs import MacCounter

HEADS, WIDTH, SIDE = 2, 4, 32


class Net(nn.Module):
    """1x1 convolutions alone, so that an edit changes keys and values inside its mask only: it can be exact there."""

    def __init__(self, attend, width=WIDTH):
        super().__init__()
        self.qkv, self.out = nn.Conv2d(8, 3 * HEADS * WIDTH, 1), nn.Conv2d(HEADS * WIDTH, 8, 1)
        self.weight = nn.Parameter(torch.randn(HEADS * WIDTH, HEADS * WIDTH))
        self.learned = nn.Parameter(torch.randn(HEADS, WIDTH, 3))
        self.attend = attend

    def forward(self, x):
        found = self.attend(self, *self.qkv(x).flatten(2).chunk(3, 1))
        return x + self.out(found.unflatten(2, x.shape[2:]))


def _heads(x):
    return x.unflatten(1, (HEADS, WIDTH))


def values_by_keys(net, q, k, v):
    """As in Sana and DC-AE: the last channel counts."""
    q, k, v = F.relu(_heads(q)), F.relu(_heads(k)).transpose(-1, -2), F.pad(_heads(v), (0, 0, 0, 1), value=1.0)
    found = torch.matmul(torch.matmul(v, k), q)
    return (found[:, :, :-1] / (found[:, :, -1:] + 1e-6)).flatten(1, 2)


def keys_by_values(net, q, k, v):
    """As in EfficientViT: tokens before channels."""
    q, k, v = (F.relu(_heads(x).transpose(-1, -2)) for x in (q, k, v))
    v = F.pad(v, (0, 1), value=1.0)
    found = q @ (k.transpose(-1, -2) @ v)
    return (found[..., :-1] / (found[..., -1:] + 1e-6)).transpose(-1, -2).flatten(1, 2)


def one_head(net, q, k, v):
    sums = torch.bmm(v, k.softmax(1).transpose(1, 2)) / q.shape[-1]
    return torch.bmm(sums, q.softmax(1))


def einsums(net, q, k, v):
    sums = torch.einsum("bhdn,bhen->bhde", _heads(k).softmax(-2), _heads(v) / q.shape[-1])
    return torch.einsum("bhde,bhdn->bhen", sums, _heads(q).softmax(-2)).flatten(1, 2)


def soft_keys(net, q, k, v):
    """As in the U-Nets that most write by hand: keys through a softmax over all positions."""
    q, k = _heads(q).softmax(dim=-2) * WIDTH**-0.5, nn.Softmax(dim=-1)(_heads(k))
    sums = torch.einsum("b h d n, b h e n -> b h d e", k, _heads(v) * 30)
    return torch.einsum("b h d e, b h d n -> b h e n", sums, q).flatten(1, 2)


def soft_tokens(net, q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q.softmax(1), k * 3, v * 30))
    return (q @ (F.softmax(k, dim=1).transpose(1, 2) @ v)).transpose(1, 2)


def beside_learned_keys(net, q, k, v):
    """Three keys and values that belong to no position."""
    k, v = (torch.cat((net.learned.expand(len(x), -1, -1, -1), _heads(x)), dim=-1) for x in (k, 30 * v))
    sums = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
    return torch.einsum("bhde,bhdn->bhen", sums, _heads(q)).flatten(1, 2)


def by_a_matrix(net, q, k, v):
    """Plain matrices before and behind tokens."""
    return net.weight @ q + (v.transpose(1, 2) @ net.weight).transpose(1, 2) + k


SPELLINGS = [
    values_by_keys, keys_by_values, one_head, einsums, soft_keys, soft_tokens, beside_learned_keys, by_a_matrix,
]  # fmt: skip
SPELLINGS = [pytest.param(lambda attend=attend: Net(attend), id=attend.__name__) for attend in SPELLINGS]
SUMS = SPELLINGS[:-2]


@pytest.mark.parametrize("kv", ["remembered", "active"])
@pytest.mark.parametrize("make", SPELLINGS)
def test_full_mask_equals_the_dense_model(trial, make, kv):
    assert trial(make, batch=2, kv=kv).error() < 1e-6


@pytest.mark.parametrize("masks", ["one mask", "two masks"])
@pytest.mark.parametrize("make", SPELLINGS)
def test_active_positions_see_the_sums_of_the_whole_edited_map(trial, make, masks):
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, 9:14, 10:17] = True
    mask[1, 20:30, 3:9] = masks == "two masks"
    done = trial(make, mask=mask, batch=2, dilation=0)
    active = done.effect.active[:, None].expand_as(done.after)
    assert ((done.after - done.dense)[active].norm() / done.dense[active].norm()).item() < 1e-6


@pytest.mark.parametrize("make", SPELLINGS)
def test_nothing_runs_dense_and_all_is_counted(trial, make):
    with MacCounter() as counter:
        done = trial(make, mask="small")
    assert (done.effect.fallbacks, counter.count.total) == ([], done.effect.macs + 2 * done.effect.dense_macs)


@pytest.mark.parametrize("make", SUMS)
def test_the_edit_costs_its_rows_with_sums_twice(trial, make):
    some, whole = (trial(make, mask=mask).effect for mask in ("small", "full"))
    convolved, multiplied = (some.sparse_macs_by_kind[kind] for kind in ("conv", "attention"))
    dense = whole.dense_macs - whole.sparse_macs_by_kind["conv"]  # half of it sums, half what queries make of them
    assert multiplied == 3 / 2 * dense * convolved / whole.sparse_macs_by_kind["conv"]


@pytest.mark.parametrize("make", SUMS)
def test_kv_active_sums_the_edited_positions_alone(trial, make):
    done = trial(make, mask="small", kv="active")
    changed = trial(make, mask="small")
    both = [done.effect.sparse_macs_by_kind["attention"], changed.effect.sparse_macs_by_kind["attention"]]
    assert (3 * both[0] == 2 * both[1], torch.equal(done.after, changed.after)) == (True, False)


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("make", SUMS)
def test_sums_follow_edits_that_stay_and_edits_that_go(edits_in_a_row, make, replay):
    assert edits_in_a_row(make, replay=replay)[1] < 1e-6


@pytest.mark.parametrize("make", SUMS)
def test_sums_of_maps_in_other_tiers_are_the_same_bits(edits_in_a_row, make, tmp_path):
    found, expected = edits_in_a_row(make, memory_budget=100_000, state_folder=tmp_path)[0], edits_in_a_row(make)[0]
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=["bfloat16", "float8"])
@pytest.mark.parametrize("make", SUMS)
def test_sums_stay_exact_where_maps_are_remembered_in_fewer_bits(trial, make, dtype):
    done = trial(make, mask="small", dilation=0, state_dtype=dtype)
    active = done.effect.active[:, None].expand_as(done.after)
    assert ((done.after - done.dense)[active].norm() / done.dense[active].norm()).item() < 1e-6


@pytest.mark.parametrize("make", SUMS)
def test_bfloat16_errs_no_more_than_the_dense_model_does(trial, make):
    exact = trial(make, mask="small", dilation=0)
    mask = exact.effect.active[0]
    model, original, edited = exact.session.model.bfloat16(), exact.original.bfloat16(), exact.edited.bfloat16()
    session = sige.Session(model, exact.session.policy)
    with session.record():
        model(original)
    with session.edit(mask):
        found = model(edited)
    with torch.no_grad():
        dense = model(edited)
    ours, plain = ((each.float() - exact.dense)[..., mask].norm() for each in (found, dense))
    assert 0 < ours <= 1.2 * plain


def weights_squared(net, q, k, v):
    return torch.bmm(torch.bmm(v, (k.softmax(-1) ** 2).transpose(1, 2)), q)


def weights_times_queries(net, q, k, v):
    return k.softmax(-1) * q + v


def queries_through_a_softmax_too(net, q, k, v):
    return torch.bmm(torch.bmm(v, k.softmax(-1).transpose(1, 2)), q.softmax(-1))


def weights_of_both(net, q, k, v):
    return torch.bmm(torch.bmm(v.softmax(-1), k.softmax(-1).transpose(1, 2)), q)


OTHERS = [weights_squared, weights_times_queries, queries_through_a_softmax_too, weights_of_both]
OTHERS = [pytest.param(lambda attend=attend: Net(attend), id=attend.__name__) for attend in OTHERS]


@pytest.mark.parametrize("make", OTHERS)
def test_a_softmax_over_positions_for_anything_else_runs_dense_and_is_named(trial, make):
    done = trial(make)
    assert (done.error() < 1e-6, "softmax" in " ".join(done.effect.fallbacks)) == (True, True)


def test_weights_that_somebody_keeps_are_theirs(trial):
    kept = []

    def collected(net, q, k, v):
        kept.append(k.softmax(-1))
        return torch.bmm(torch.bmm(v, kept[-1].transpose(1, 2)), q)

    assert trial(lambda: Net(collected)).error() < 1e-6
    before, after, dense = kept
    assert ((after - dense).abs().max() < 1e-6, (before + after).shape) == (True, dense.shape)
