"""Sessions of a model on a GPU: they give what they give on the CPU, mix no devices, and wait where they say.

The GPU is not there (see tests/pretended.py), so that this holds on every machine; the kernels are PyTorch's own, composed.
"""

import copy

import pytest
import torch
from pretended import gpu

import sige

TIMES = [torch.tensor(time) for time in (700, 500, 300)]
POLICIES = ["sige", "incremental", "fisedit", "fisedit_radical"]


@pytest.fixture
def waits():
    with gpu() as waits:
        yield waits


def recorded(model, policy, images, device="cuda", **settings):
    """A session of a copy of the model with three recorded steps."""
    session = sige.Session(copy.deepcopy(model).to(device), policy, **settings)
    with session.record():
        for time in TIMES:
            session.model(images[0].to(device), time)
    return session


def edited(session, images, device="cuda", before=lambda: None, after=lambda: None):
    """Outputs of an edit; ``before`` is called before it, ``after`` after each step."""
    found, picture = [], images[1].to(device)
    before()
    with session.edit(images[2]):
        for time in TIMES:
            found.append(session.model(picture, time).sample)
            after()
    return found


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", POLICIES)
def test_an_edit_gives_what_it_gives_on_the_cpu(unet, small, images, relative, name):
    exact = edited(recorded(unet, small(name), images, "cpu"), images, "cpu")
    with gpu():
        session = recorded(unet, small(name), images)
        got = [[output.cpu() for output in edited(session, images)] for _ in range(2)][-1]
    assert session.replayed_steps >= 3
    assert max(relative(one, other) for one, other in zip(got, exact, strict=True)) < 1e-5


@pytest.mark.parametrize("name", POLICIES)
def test_an_edit_under_a_known_plan_waits_once_at_its_end(unet, small, images, waits, name):
    session, counts = recorded(unet, small(name), images), []
    edited(session, images)
    edited(session, images, before=waits.clear, after=lambda: counts.append(len(waits)))
    assert (counts, waits) == ([0, 0, 0], ["tolist"])


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_mask_may_lie_on_either(unet, small, images, waits, where):
    session = recorded(unet, small("incremental"), images)
    with session.edit(images[2].to(where)) as effect:
        session.model(images[1].cuda(), TIMES[0])
    assert 0 < effect.macs < effect.dense_macs


@pytest.mark.parametrize("dtype", [pytest.param(None, id="whole"), pytest.param(torch.float8_e4m3fn, id="float8")])
@pytest.mark.parametrize("host", [pytest.param(None, id="host"), pytest.param(0.5, id="host and disk")])
def test_state_in_other_tiers_gives_the_same_bits(unet, small, images, waits, tmp_path, dtype, host):
    policy = small("incremental", state_dtype=dtype)
    session = recorded(unet, policy, images)
    budget = {"device": 2 * session.least_budget} | ({"host": int(host * session.least_budget)} if host else {})
    stored = recorded(unet, policy, images, memory_budget=budget, state_folder=tmp_path)
    assert stored.state_tiers()["host" if host is None else "disk"] > 0
    assert same(*([edited(one, images) for _ in range(2)][-1] for one in (session, stored)))


def test_a_saved_session_is_edited_where_its_model_is(unet, small, images, waits, tmp_path):
    session = recorded(unet, small("incremental"), images)
    session.save(tmp_path / "saved")
    assert same(edited(session, images), edited(sige.Session.load(tmp_path / "saved", session.model), images))


def test_what_was_wrong_is_said_when_the_edit_ends(unet, small, images, waits):
    session, reached = recorded(unet, small("incremental"), images), []
    with pytest.raises(sige.errors.ChangedInputError):
        edited(session, (images[0], images[1] + 1, images[2]), after=lambda: reached.append(True))
    assert (len(reached), session._edited) == (3, [])
