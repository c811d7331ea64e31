"""Time and text: computed once, remembered, and computed anew only where an edit declares a change."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige

SIDE, TOKENS, TEXT, WIDTH = 16, 5, 6, 8
POLICY = dataclasses.replace(sige.policy("incremental"), block=4, dilation=1, min_resolution=4, dense_above=None)
TIME_MACS, TEXT_MACS = 2 * WIDTH * WIDTH, TOKENS * TEXT * WIDTH
FULL = torch.ones(SIDE, SIDE, dtype=torch.bool)


class Conditioned(nn.Module):
    """A map moved by a time embedding of two linear layers and by the projection of a text of one.

    ``prepare(x)`` makes the base of the time's waves, from the map or not.
    """

    def __init__(self, prepare=lambda x: torch.arange(1.0, WIDTH + 1)[None]):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.text, self.prepare = nn.Linear(TEXT, WIDTH), prepare

    def forward(self, x, t, text):
        shift = self.time(torch.sin(self.prepare(x) * t)) + self.text(text).mean(1)
        return self.last(F.silu(self.first(x) + shift[:, :, None, None]))


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, SIDE, SIDE, generator=generator), torch.randn(1, TOKENS, TEXT, generator=generator)


def small_mask():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[4:8, 8:12] = True
    return mask


def recorded(model, *calls, policy=POLICY):
    session = sige.Session(model, policy)
    with session.record():
        for call in calls:
            model(*call)
    return session


def edited(session, mask, *calls, changed=()):
    with session.edit(mask, changed=changed) as effect:
        outputs = [session.model(*call) for call in calls]
    return outputs, effect


def dense(model, *call):
    with torch.no_grad():
        return model(*call)


def linear_macs(effect):
    return effect.sparse_macs_by_kind["linear"]


def test_an_edit_of_the_map_runs_no_linear_layer_of_time_and_text():
    (x, text), model = inputs(), Conditioned()
    _, effect = edited(recorded(model, (x, 0.5, text)), small_mask(), (x, 0.5, text))
    assert (linear_macs(effect), effect.dense_macs - TIME_MACS - TEXT_MACS) == (0, SIDE * SIDE * 2 * 9 * 3 * WIDTH)


@pytest.mark.parametrize("time", [0.5, torch.tensor(0.5), torch.tensor([0.5])], ids=["number", "scalar", "vector"])
def test_what_is_remembered_of_time_and_text_gives_the_dense_result(time):
    (x, text), model = inputs(), Conditioned()
    outputs, effect = edited(recorded(model, (x, time, text)), FULL, (-x, time, text))
    assert ((outputs[0] - dense(model, -x, time, text)).abs().max() < 1e-5, effect.fallbacks) == (True, [])


def test_a_text_declared_changed_is_projected_anew_and_the_time_is_not():
    (x, text), model = inputs(), Conditioned()
    outputs, effect = edited(recorded(model, (x, 0.5, text)), FULL, (x, 0.5, -text), changed=("text",))
    right = (outputs[0] - dense(model, x, 0.5, -text)).abs().max() < 1e-5
    assert (linear_macs(effect), bool(right)) == (TEXT_MACS, True)


@pytest.mark.parametrize(
    "copied, times",
    [pytest.param(False, 1, id="the same tensor: once"), pytest.param(True, 3, id="a tensor a step: each step")],
)
def test_a_changed_text_is_projected_once_for_steps_that_share_it(copied, times):
    (x, text), model = inputs(), Conditioned()
    steps = [0.1, 0.2, 0.3]
    session = recorded(model, *[(x, step, text) for step in steps])
    other = -text
    calls = [(x, step, other.clone() if copied else other) for step in steps]
    outputs, effect = edited(session, FULL, *calls, changed=("text",))
    right = max((out - dense(model, *call)).abs().max() for out, call in zip(outputs, calls)) < 1e-5
    assert (linear_macs(effect), bool(right)) == (times * TEXT_MACS, True)


def test_a_changed_text_written_to_between_steps_is_projected_anew():
    (x, text), model = inputs(), Conditioned()
    session = recorded(model, (x, 0.1, text), (x, 0.2, text))
    other, outputs = -text, []
    with session.edit(FULL, changed=("text",)):
        outputs.append(model(x, 0.1, other))
        other.mul_(2)
        outputs.append(model(x, 0.2, other))
    expected = dense(model, x, 0.1, -text), dense(model, x, 0.2, -2 * text)
    assert max((out - right).abs().max() for out, right in zip(outputs, expected)) < 1e-5


@pytest.mark.parametrize("time, other", [(0.5, 0.9), (torch.tensor(0.5), torch.tensor(0.9))], ids=["number", "tensor"])
def test_a_time_declared_changed_is_embedded_anew(time, other):
    (x, text), model = inputs(), Conditioned()
    outputs, effect = edited(recorded(model, (x, time, text)), FULL, (x, other, text), changed=("t",))
    right = (outputs[0] - dense(model, x, other, text)).abs().max() < 1e-5
    assert (linear_macs(effect) >= TIME_MACS, bool(right)) == (True, True)


def test_a_changed_time_tensor_leaves_the_text_alone():
    (x, text), model = inputs(), Conditioned()
    session = recorded(model, (x, torch.tensor(0.5), text))
    _, effect = edited(session, FULL, (x, torch.tensor(0.9), text), changed=("t",))
    assert linear_macs(effect) == TIME_MACS


@pytest.mark.parametrize("steps", [1, 3])
def test_outputs_that_steps_share_are_remembered_once(steps):
    (x, text), model = inputs(), Conditioned()
    session = recorded(model, *[(x, 0.1 * step, text) for step in range(steps)])
    of_text, of_time = TOKENS * WIDTH * 4, 2 * WIDTH * 4
    assert session.state_bytes()["conditioning"] == of_text + steps * of_time


def filled(x):
    base = torch.zeros(1, WIDTH)
    base[:] = x.mean()
    return base


def copied_into(x):
    return torch.zeros(1, WIDTH).copy_(x.mean((2, 3)).mean(1))


def written_through_a_view(x):
    base = torch.ones(1, WIDTH)
    base[0, 2:].mul_(x.mean())
    return base


def seen_through_a_view(x):
    base = torch.ones(WIDTH)
    view = base[None]
    base.mul_(x.mean())
    return view


def written_beside(x):
    base = torch.ones(2, WIDTH)
    one, other = base[:1], base.view(1, -1)
    other.mul_(x.mean())
    return one


def given_out(x):
    base = torch.ones(1, WIDTH)
    torch.mul(base, x.mean(), out=base)
    return base


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda x: x.mean() + torch.zeros(1, WIDTH), id="made from the map"),
        pytest.param(filled, id="item assignment"),
        pytest.param(copied_into, id="copy_"),
        pytest.param(written_through_a_view, id="through a view"),
        pytest.param(seen_through_a_view, id="seen through a view"),
        pytest.param(written_beside, id="through another view"),
        pytest.param(given_out, id="out="),
    ],
)
def test_what_depends_on_the_map_is_no_conditioning(prepare):
    (x, text), model = inputs(), Conditioned(prepare)
    outputs, _ = edited(recorded(model, (x, 0.5, text)), FULL, (x + 1, 0.5, text))
    assert (outputs[0] - dense(model, x + 1, 0.5, text)).abs().max() < 1e-5


def test_undo_restores_the_projections_of_the_recorded_text():
    (x, text), model = inputs(), Conditioned()
    session = recorded(model, (x, 0.5, text))
    before, _ = edited(session, small_mask(), (x, 0.5, text))
    edited(session, FULL, (x, 0.5, -text), changed=("text",))
    session.undo()
    after, effect = edited(session, small_mask(), (x, 0.5, text))
    assert (torch.equal(after[0], before[0]), linear_macs(effect)) == (True, 0)


def test_a_committed_text_is_what_the_next_edit_builds_on():
    (x, text), model = inputs(), Conditioned()
    session = recorded(model, (x, 0.5, text))
    edited(session, FULL, (x, 0.5, -text), changed=("text",))
    session.commit()
    outputs, effect = edited(session, FULL, (-x, 0.5, -text))
    right = (outputs[0] - dense(model, -x, 0.5, -text)).abs().max() < 1e-5
    assert (bool(right), linear_macs(effect)) == (True, 0)


def test_buffers_of_the_model_are_conditioning_too():
    (x, text), model = inputs(), Conditioned(lambda x: None)
    model.register_buffer("base", torch.arange(1.0, WIDTH + 1)[None])
    model.prepare = lambda x: model.base
    _, effect = edited(recorded(model, (x, 0.5, text)), small_mask(), (x, 0.5, text))
    assert linear_macs(effect) == 0


class Keeping(Conditioned):
    """Keeps the base of its waves in a buffer, which every forward overwrites from the map. ``whole``: not by way of a view."""

    def __init__(self, whole):
        super().__init__()
        self.register_buffer("base", torch.ones(1, WIDTH))
        self.prepare, self.whole = self.keep, whole

    def keep(self, x):
        if self.whole:
            self.base.copy_(x.mean().expand(1, WIDTH))
        else:
            self.base[:, 1:].copy_(x.mean().expand(1, WIDTH - 1))
        return self.base


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "through a view"])
def test_a_buffer_written_from_the_map_is_no_conditioning(whole):
    (x, text), model = inputs(), Keeping(whole)
    outputs, _ = edited(recorded(model, (x, 0.5, text)), FULL, (x + 1, 0.5, text))
    assert (outputs[0] - dense(model, x + 1, 0.5, text)).abs().max() < 1e-5


class Gathering(Conditioned):
    """Copies its text into a tensor of its own, token by token, before it projects it."""

    def forward(self, x, t, text):
        gathered = torch.zeros(1, TOKENS, TEXT)
        for token in range(TOKENS):
            gathered[:, token].copy_(text[:, token])
        return super().forward(x, t, gathered)


def test_a_changed_text_copied_through_views_is_projected_anew():
    (x, text), model = inputs(), Gathering()
    outputs, _ = edited(recorded(model, (x, 0.5, text)), FULL, (x, 0.5, -text), changed=("text",))
    assert (outputs[0] - dense(model, x, 0.5, -text)).abs().max() < 1e-5
