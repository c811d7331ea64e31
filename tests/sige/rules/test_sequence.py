"""Joint sequences of text and image tokens, between convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige

TEXT = 5


class Joint(nn.Module):
    """A convolution, tokens beside a text of five, ``body(net, text, tokens) -> (text, tokens)``, tokens again as a map."""

    def __init__(self, body):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.query, self.key, self.value, self.more = (nn.Linear(8, 8) for _ in range(5))
        self.register_buffer("text", torch.randn(2, TEXT, 8))
        self.body = body

    def forward(self, x):
        x = self.first(x)
        text, tokens = self.body(self, self.text[: len(x)], x.flatten(2).transpose(1, 2))
        tokens = tokens + text.mean(1, keepdim=True)
        return self.last(tokens.transpose(1, 2).reshape(x.shape))

    def attend(self, both):
        """Attention of all over all, two heads."""
        query, key, value = (
            layer(both).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return both + found.transpose(1, 2).flatten(2)


def net(body):
    return lambda: Joint(body)


def text_first(n, text, tokens):
    both = n.mix(torch.cat([text, tokens], 1))
    return both[:, :TEXT], both[:, TEXT:]


def text_last(n, text, tokens):
    both = n.mix(torch.cat([tokens, text], dim=-2))
    return both[:, tokens.shape[1] :], both[:, : tokens.shape[1]]


def in_heads(n, text, tokens):
    parts = [x.view(len(x), -1, 2, 4).transpose(1, 2) for x in (tokens, text)]
    both = torch.cat(parts, 2).transpose(1, 2).reshape(len(text), -1, 8)
    return both[:, tokens.shape[1] :, :], both[:, : tokens.shape[1], :]


def put_back(n, text, tokens):
    """Image tokens of a sequence replaced, as CogView4 does with rotary embeddings."""
    both = n.mix(torch.cat([text, tokens], 1)).unflatten(-1, (2, 4)).transpose(1, 2)
    both[:, :, TEXT:] = both[:, :, TEXT:] * 2 + 1
    both[..., 1:3] = both[..., 1:3].relu()
    both = both.transpose(1, 2).flatten(2)
    return both[:, :TEXT], both[:, TEXT:]


def split_in_two(n, text, tokens):
    return torch.cat([text, tokens], 1).split([TEXT, tokens.shape[1]], dim=1)


def split_with_sizes(n, text, tokens):
    both = torch.cat([text, tokens], 1)
    return both.split_with_sizes([TEXT, both.shape[1] - TEXT], 1)


def narrowed(n, text, tokens):
    both = torch.cat([text, tokens], 1)
    return both.narrow(1, 0, TEXT), torch.narrow(both, -2, TEXT, tokens.shape[1])


def negative(n, text, tokens):
    both = torch.cat([tokens, text], 1)
    return both[..., -TEXT:, :], both[:, :-TEXT]


def two_texts(n, text, tokens):
    both = torch.cat([text, tokens, 2 * text], 1)
    first, tokens, second = both[:, :TEXT], both[:, TEXT:-TEXT], both[:, -TEXT:]
    return first + second, tokens


def part_of_the_text(n, text, tokens):
    both = n.mix(torch.cat([text, tokens], 1))
    return torch.cat([both[:, :2], both[:, 2:TEXT]], 1), both[:, TEXT:]


def two_maps(n, text, tokens):
    both = n.mix(torch.cat([tokens, text, n.more(tokens)], 1))
    first, text, second = both.split([tokens.shape[1], TEXT, tokens.shape[1]], 1)
    return text, first + second


def sequence_of_sequences(n, text, tokens):
    both = torch.cat([text, torch.cat([tokens, text], 1)], 1)
    pair = both[:, TEXT:]
    return both[:, :TEXT] + pair[:, -TEXT:], pair[:, :-TEXT]


def joined_twice(n, text, tokens):
    text, tokens = text_first(n, text, tokens)
    return text_last(n, torch.tanh(text), F.gelu(tokens))


def attention(n, text, tokens):
    both = n.attend(torch.cat([text, tokens], 1))
    text, tokens = both[:, :TEXT], both[:, TEXT:]
    both = n.attend(torch.cat([tokens, text * 2], 1))
    return both[:, -TEXT:], both[:, :-TEXT]


CASES = [
    pytest.param(net(text_first), id="text first"),
    pytest.param(net(text_last), id="text last"),
    pytest.param(net(put_back), id="put back"),
    pytest.param(net(in_heads), id="in heads"),
    pytest.param(net(split_in_two), id="split"),
    pytest.param(net(split_with_sizes), id="split with sizes"),
    pytest.param(net(narrowed), id="narrow"),
    pytest.param(net(negative), id="counted from the end"),
    pytest.param(net(two_texts), id="texts on both sides"),
    pytest.param(net(part_of_the_text), id="part of the text"),
    pytest.param(net(two_maps), id="two maps"),
    pytest.param(net(sequence_of_sequences), id="sequence of sequences"),
    pytest.param(net(joined_twice), id="joined twice"),
    pytest.param(net(attention), id="attention"),
]
MASKS = torch.zeros(2, 32, 32, dtype=torch.bool)
MASKS[0, 9:14, 10:17] = MASKS[1, 20:30, 2:5] = True
WIDE = {"dilation": (7, 5, 3)}  # sets that reach past every convolution here


def cut_through_the_map(n, text, tokens):
    both = torch.cat([text, tokens], 1)
    return both[:, :TEXT], torch.cat([both[:, TEXT : TEXT + 9], both[:, TEXT + 9 :]], 1)


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, batch, geometry):
    done = trial(make, geometry, batch=batch)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", [case for case in CASES if case.id != "attention"])
def test_samples_with_masks_of_their_own_equal_the_dense_model(trial, make):
    done = trial(make, mask=MASKS, batch=2, **WIDE)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, batch):
    done = trial(make, mask="small", batch=batch)
    assert (done.same_outside(), done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", CASES)
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same", batch=2)
    assert (done.after - done.before).abs().max() < 1e-5


def test_attention_beside_an_edit_is_near_the_dense_model(trial):
    assert trial(net(attention), mask=MASKS, batch=2, **WIDE).error() < 0.05


def test_cut_through_the_map_runs_dense_and_is_named(trial):
    done = trial(net(cut_through_the_map), batch=2)
    assert (done.error() < 1e-4, {name.split(".")[1] for name in done.effect.fallbacks}) == (
        True,
        {"__getitem__ at the root module"},
    )


@pytest.mark.parametrize(
    "meet", [pytest.param(torch.add, id="sum"), pytest.param(lambda a, b: torch.cat([a, b], 2), id="cat")]
)
def test_sequences_in_another_order_cannot_meet(trial, meet):
    def body(n, text, tokens):
        return text, meet(torch.cat([text, tokens], 1), torch.cat([tokens, text], 1))

    with pytest.raises(sige.SigeError, match=r"stand in other places: joint 5\+256 and joint 256\+5"):
        trial(net(body))


@pytest.mark.parametrize("refresh", [2, None])
@pytest.mark.parametrize("make", CASES)
def test_remembered_text_of_an_unchanged_picture_is_right(trial, make, refresh):
    done = trial(make, mask="same", batch=2, text_refresh=refresh)
    assert (done.after - done.before).abs().max() < 1e-5


def test_remembered_text_costs_nothing(trial):
    always, never = (trial(net(attention), mask="small", text_refresh=n).effect for n in (1, None))
    tokens = never.active.sum().item()
    keys, texts = 16 * 16 + TEXT, 2 * TEXT
    linear, products = 3 * texts * 64, texts * keys * 16
    assert (always.macs - never.macs, tokens > 0) == (linear + products, True)


def test_text_is_new_in_every_second_forward(policy):
    torch.manual_seed(0)
    model, x = Joint(attention).eval(), torch.randn(1, 8, 32, 32)
    session = sige.Session(model, policy(text_refresh=2))
    with session.record():
        for _ in range(3):
            model(x)
    macs = [0]
    with session.edit(MASKS[0]) as effect:
        for _ in range(3):
            model(x)
            macs.append(effect.macs)
    first, second, third = (after - before for before, after in zip(macs, macs[1:]))
    assert (first == third, second < first) == (True, True)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_refresh_that_makes_no_sense(value):
    with pytest.raises(sige.SigeError, match=f"text_refresh={value} must be None or a whole number of at least 1"):
        sige.Policy(text_refresh=value)
