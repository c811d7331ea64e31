"""Attention that models write out by hand: what ``scaled_dot_product_attention`` gives, at its cost; anything else as it is written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige.macs import MacCounter

HEADS, WIDTH, TEXT = 2, 4, 5


class Net(nn.Module):
    """A 3x3 convolution of stride 2, then ``attend(net, q, k, v)`` on tokens (B, N, 8), or on channels (B, 8, N)."""

    def __init__(self, attend, channels=False, text=False, reduce=1):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.reduce = nn.Conv2d(8, 8, reduce, stride=reduce)
        self.attend, self.channels = attend, channels
        self.register_buffer("text", torch.randn(2, TEXT, 8) if text else None)
        self.register_buffer("bias", torch.randn(1, HEADS, 256, 256))

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        seen = self.reduce(x).flatten(2).transpose(1, 2) if self.text is None else self.text[: len(x)]
        made = self.q(tokens), self.k(seen), self.v(seen)
        if self.channels:
            made = [part.transpose(1, 2) for part in made]
        found = self.attend(self, *made)
        found = found.transpose(1, 2) if self.channels else found
        return x + self.out(found).transpose(1, 2).view(x.shape)


def _heads(x):
    return x.view(len(x), -1, HEADS, WIDTH).transpose(1, 2)


def _together(x):
    return x.transpose(1, 2).reshape(len(x), -1, HEADS * WIDTH)


def _fold(x):
    return x.reshape(len(x), -1, HEADS, WIDTH).permute(0, 2, 1, 3).reshape(len(x) * HEADS, -1, WIDTH)


def _unfold(x):
    batch = len(x) // HEADS
    return x.reshape(batch, HEADS, -1, WIDTH).permute(0, 2, 1, 3).reshape(batch, -1, HEADS * WIDTH)


def by_the_operator(net, q, k, v):
    return _together(F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), scale=0.5))


def heads(net, q, k, v):
    scores = _heads(q) * 0.5 @ _heads(k).transpose(-2, -1)
    return _together(F.dropout(scores.softmax(dim=-1), 0.1, net.training) @ _heads(v))


def divided(net, q, k, v):
    scores = torch.matmul(_heads(q), _heads(k).permute(0, 1, 3, 2)) / 2
    return _together(torch.matmul(nn.Softmax(dim=-1)(scores), _heads(v)))


def matrices(net, q, k, v):
    return _together((_heads(q) @ _heads(k).mT / 2).softmax(-1) @ _heads(v))


def folded_matrices(net, q, k, v):
    return _unfold((_fold(v).mT @ (_fold(q) @ _fold(k).mT / 2).softmax(-1).mT).mT)


def added_empty(net, q, k, v):
    q, k, v = _fold(q), _fold(k), _fold(v)
    empty = torch.empty(len(q), q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=0.5)
    return _unfold(torch.bmm(scores.float().softmax(dim=-1).to(v.dtype), v))


def by_keyword(net, q, k, v):
    q, k, v = _fold(q), _fold(k), _fold(v)
    added = q.new_zeros(len(q), q.shape[1], k.shape[1])
    scores = added.baddbmm(batch1=q, batch2=k.transpose(-1, -2), beta=0, alpha=0.5)
    return _unfold(torch.bmm(scores.softmax(dim=-1), mat2=v))


def einsum_of_tokens(net, q, k, v):
    scores = torch.einsum("b i d, b j d -> b i j", _fold(q), _fold(k)) * 0.5
    return _unfold(torch.einsum("b i j, b j d -> b i d", scores.softmax(dim=-1), _fold(v)))


def viewed_back(net, q, k, v):
    scores = torch.bmm(_fold(q), _fold(k).transpose(1, 2)).view(-1, HEADS, q.shape[1], k.shape[1]) * 0.5
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).type_as(v)
    return _unfold(torch.bmm(weights.view(-1, *weights.shape[2:]), _fold(v)))


def heads_behind_tokens(net, q, k, v):
    q, k, v = (x.view(len(x), -1, HEADS, WIDTH) for x in (q, k, v))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.5).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def folded_operator(net, q, k, v):
    return _unfold(F.scaled_dot_product_attention(_fold(q), _fold(k), _fold(v), scale=0.5))


SPELLINGS = [
    heads,
    folded_operator,
    divided,
    matrices,
    folded_matrices,
    added_empty,
    by_keyword,
    einsum_of_tokens,
    viewed_back,
    heads_behind_tokens,
]


def one_head(net, q, k, v):
    return torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.3).softmax(dim=2), v)


def one_head_by_the_operator(net, q, k, v):
    return F.scaled_dot_product_attention(*(x.unsqueeze(1) for x in (q, k, v)), scale=0.3).squeeze(1)


def channels_first(net, q, k, v):
    weights = (torch.bmm(q.permute(0, 2, 1), k) * 0.3).softmax(dim=2)
    return torch.bmm(v, weights.permute(0, 2, 1))


def channels_first_by_the_operator(net, q, k, v):
    return one_head_by_the_operator(net, *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def keys_first(net, q, k, v):
    return torch.bmm(v, (torch.bmm(k.transpose(1, 2), q) * 0.3).softmax(dim=1))


def split_channels(net, q, k, v):
    """Queries, keys and values of each head beside one another, both scaled by the square root of the scale."""
    whole = torch.stack([x.reshape(len(x), HEADS, WIDTH, -1) for x in (q, k, v)], 2).flatten(1, 3)
    q, k, v = whole.reshape(len(whole) * HEADS, 3 * WIDTH, -1).split(WIDTH, dim=1)
    scores = torch.einsum("bct,bcs->bts", q * 0.5**0.5, k * 0.5**0.5)
    weights = torch.softmax(scores.float(), dim=-1).type(scores.dtype)
    return torch.einsum("bts,bcs->bct", weights, v).reshape(-1, HEADS * WIDTH, v.shape[-1])


def channels_by_the_operator(net, q, k, v):
    return by_the_operator(net, *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def biased(net, q, k, v):
    scores = _heads(q) @ _heads(k).transpose(-2, -1) * 0.5 + net.bias
    return _together(scores.softmax(dim=-1) @ _heads(v))


def biased_by_the_operator(net, q, k, v):
    return _together(F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), net.bias, scale=0.5))


def added_bias(net, q, k, v):
    bias = net.bias.expand(len(q), -1, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, _fold(q), _fold(k).transpose(1, 2), beta=1, alpha=0.5)
    return _unfold(torch.bmm(scores.softmax(dim=-1), _fold(v)))


def case(written, operator=by_the_operator, name=None, **options):
    return pytest.param(lambda: Net(written, **options), lambda: Net(operator, **options), id=name or written.__name__)


CASES = [
    *(case(written) for written in SPELLINGS),
    *(case(written, name=f"{written.__name__}, text", text=True) for written in SPELLINGS),
    case(heads, name="heads, keys of a smaller map", reduce=2),
    case(added_empty, name="added_empty, keys of a smaller map", reduce=2),
    case(one_head, one_head_by_the_operator),
    case(one_head, one_head_by_the_operator, "one head, text", text=True),
    case(channels_first, channels_first_by_the_operator, channels=True),
    case(keys_first, channels_first_by_the_operator, channels=True),
    case(split_channels, channels_by_the_operator, channels=True),
    case(biased, biased_by_the_operator),
    case(added_bias, biased_by_the_operator),
]


@pytest.mark.parametrize("kv", ["remembered", "active", "reprojected"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("written, operator", CASES)
def test_full_mask_equals_the_dense_model(trial, written, operator, batch, kv):
    assert trial(written, kv=kv, batch=batch).error() < 1e-4


@pytest.mark.parametrize("mask", ["small", "wide"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("written, operator", CASES)
def test_it_gives_what_the_operator_gives(trial, written, operator, batch, mask):
    by_hand, found = (trial(make, mask=mask, batch=batch) for make in (written, operator))
    assert (by_hand.after - found.after).abs().max() < 1e-5


@pytest.mark.parametrize("written, operator", CASES)
def test_it_costs_what_the_operator_costs(trial, written, operator):
    by_hand, found = (trial(make, mask="small").effect for make in (written, operator))
    assert (by_hand.sparse_macs_by_kind, by_hand.fallbacks) == (found.sparse_macs_by_kind, [])


@pytest.mark.parametrize("mask", ["full", "small"])
@pytest.mark.parametrize("written, operator", CASES)
def test_products_are_those_that_ran(trial, written, operator, mask):
    with MacCounter() as counter:
        done = trial(written, mask=mask)
    assert counter.count.total == done.effect.macs + 2 * done.effect.dense_macs


@pytest.mark.parametrize("written, operator", CASES)
def test_unchanged_input_returns_the_recording(trial, written, operator):
    done = trial(written, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("written, operator", CASES)
def test_the_recorded_forward_is_the_model(trial, written, operator):
    done = trial(written, mask="same")
    assert (done.before - done.dense).abs().max() < 1e-5


# -- what is more than attention is carried out as it is written --


def sharpened(net, q, k, v):
    weights = (_heads(q) @ _heads(k).transpose(-2, -1)).softmax(dim=-1)
    return _together((weights**2) @ _heads(v))


def masked_by_hand(net, q, k, v):
    scores = _heads(q) @ _heads(k).transpose(-2, -1)
    return _together(scores.masked_fill(net.bias > 0, -1e4).softmax(dim=-1) @ _heads(v))


def scaled_in_place(net, q, k, v):
    scores = torch.bmm(_fold(q), _fold(k).transpose(1, 2))
    scores *= 0.5
    return _unfold(torch.bmm(scores.softmax(dim=-1), _fold(v)))


def scaled_behind_the_mask(net, q, k, v):
    scores = (_heads(q) @ _heads(k).transpose(-2, -1) + net.bias) * 0.5
    return _together(scores.softmax(dim=-1) @ _heads(v))


def no_softmax(net, q, k, v):
    return _together(_heads(q) @ _heads(k).transpose(-2, -1) / 256 @ _heads(v))


def over_samples(net, q, k, v):
    scores = _heads(q) @ _heads(k).transpose(-2, -1)
    return _together(scores.softmax(dim=0) @ _heads(v))


def over_heads(net, q, k, v):
    return _unfold(_fold(q).softmax(dim=-1) * _fold(v).mean(1, keepdim=True))


def seen_twice(net, q, k, v):
    weights = (_heads(q) @ _heads(k).transpose(-2, -1)).softmax(dim=-1)
    found = weights @ _heads(v)
    return _together(found * weights.amax(-1, keepdim=True) + weights @ _heads(v))


OTHERS = [
    sharpened, masked_by_hand, scaled_in_place, scaled_behind_the_mask, no_softmax, over_samples, over_heads, seen_twice,
]  # fmt: skip
OTHERS = [pytest.param(lambda attend=attend: Net(attend), id=attend.__name__) for attend in OTHERS]


@pytest.mark.parametrize("mask", ["full", "wide"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", OTHERS)
def test_anything_else_gives_active_positions_the_dense_result(trial, make, batch, mask):
    done = trial(make, mask=mask, batch=batch)
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-4


@pytest.mark.parametrize("make", OTHERS)
def test_anything_else_is_named(trial, make):
    assert trial(make, mask="small").effect.fallbacks != []


@pytest.mark.parametrize("make", OTHERS)
def test_dense_macs_are_those_of_the_plain_model(trial, make):
    done = trial(make, mask="small")
    with MacCounter() as counter, torch.no_grad():
        done.session.model(done.original)
    assert counter.count.total == done.effect.dense_macs


@pytest.mark.parametrize("make", OTHERS)
def test_what_is_carried_out_is_counted(trial, make):
    done = trial(make, mask="small")
    with MacCounter() as counter, done.session.edit(_small()) as effect:
        done.session.model(done.edited)
    assert counter.count.total == effect.macs


def _small():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[9:14, 10:17] = True
    return mask


@pytest.mark.parametrize("text", [False, True], ids=["self", "text"])
def test_scores_that_somebody_keeps_are_theirs(trial, text):
    """A list of attention maps, as prompt-to-prompt keeps it, looked at after the forward, and again in the next one."""
    kept = []

    def collected(net, q, k, v):
        weights = (_heads(q) @ _heads(k).transpose(-2, -1)).softmax(dim=-1)
        kept.append(weights.detach())
        return _together(weights @ _heads(v))

    assert trial(lambda: Net(collected, text=text)).error() < 1e-4
    before, after, dense = kept
    assert ((after - dense).abs().max() < 1e-5, (before + after).shape) == (True, dense.shape)


def test_scores_that_the_model_returns_are_its_own(trial):
    class Returns(Net):
        def forward(self, x):
            self.scores = None
            return super().forward(x), self.scores

    def kept(net, q, k, v):
        net.scores = (_heads(q) @ _heads(k).transpose(-2, -1)).softmax(dim=-1)
        return _together(net.scores @ _heads(v))

    import sige

    torch.manual_seed(0)
    model, x = Returns(kept).eval(), torch.randn(1, 8, 32, 32)
    session = sige.Session(model)
    with session.record():
        found = model(x)[1]
    with torch.no_grad():
        assert (found - model(x)[1]).abs().max() < 1e-5


def tokens_first(net, q, k, v):
    """A result in an order that folded heads have no rule for."""
    weights = (torch.einsum("bid,bjd->bij", _fold(q), _fold(k)) * 0.5).softmax(-1)
    return _unfold(torch.einsum("bij,bjd->ibd", weights, _fold(v)).transpose(0, 1))


def added_values(net, q, k, v):
    """The second product by ``baddbmm``: more than attention."""
    weights = (torch.bmm(_fold(q), _fold(k).transpose(1, 2)) * 0.5).softmax(-1)
    return _unfold(torch.baddbmm(_fold(q), weights, _fold(v)))


def test_values_added_to_something_are_multiplied_once(trial):
    with MacCounter() as counter:
        done = trial(lambda: Net(added_values))
    assert (done.error() < 1e-4, counter.count.total) == (True, done.effect.macs + 2 * done.effect.dense_macs)


def test_an_order_that_heads_cannot_have_is_multiplied_once(trial):
    with MacCounter() as counter:
        done = trial(lambda: Net(tokens_first))
    assert (done.error() < 1e-4, counter.count.total) == (True, done.effect.macs + 2 * done.effect.dense_macs)


@pytest.mark.parametrize("written, operator", CASES)
def test_autocast_errs_no_more_than_the_dense_model_does(trial, written, operator):
    exact = trial(written).dense
    with torch.autocast("cpu", torch.bfloat16):
        done = trial(written)
    ours, dense = ((found.float() - exact).norm() for found in (done.after, done.dense))
    assert (done.effect.fallbacks, bool(0 < ours <= 1.2 * dense), done.after.dtype) == ([], True, done.dense.dtype)
