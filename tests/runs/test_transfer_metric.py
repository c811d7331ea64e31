"""Times of bringing remembered maps to where they are used, of a session whose budget holds two steps."""

import contextlib
from types import SimpleNamespace

import pytest
import runner_fakes as fakes
import torch

from sige.runs.methods import session
from sige.runs.metrics import transfer
from sige.runs.models.zoo import Zoo

SIDE, STEPS = fakes.SIZE, 4
STEP = 4 * SIDE * SIDE * 4  # bytes of the input of the second convolution


@pytest.fixture
def bench():
    """The fake network behind a session that has recorded one step."""
    zoo = Zoo(fakes.MODEL, "cpu")
    options = {"policy": "incremental", "dials": {"block": 2, "min_resolution": 1}}
    runner = session.build("ours", options, zoo, {"dtype": "float32"})
    original, mask = torch.randn(1, 3, SIDE, SIDE), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[4:8, 5:9] = True
    with torch.no_grad(), runner.session.record():
        runner.module(original)
    return SimpleNamespace(
        zoo=zoo,
        runners={"ours": runner},
        original=(original,),
        edited=(torch.where(mask, original + 1, original),),
        mask=mask,
        changed=(),
        samples={},
        guard=lambda method: contextlib.nullcontext(),
        tick=lambda: None,
    )


def test_a_session_reads_its_transfer_what_is_left_and_its_share(bench):
    found = {reading.metric: reading.value for reading in transfer.collect(bench, STEPS, rounds=1)}
    assert set(found) == {"transfer", "transfer.exposed", "transfer.exposed_share"}
    assert (found["transfer"] > 0, 0 <= found["transfer.exposed_share"] < 1) == (True, True)


def test_every_round_is_kept_with_and_without_loading_ahead(bench):
    list(transfer.collect(bench, STEPS, rounds=2))
    assert {ahead: len(times) for ahead, times in bench.samples["transfer_ms"]["ours"].items()} == {
        "True": 3,
        "False": 3,
    }


def test_two_steps_fit_the_budget_and_the_others_are_on_disk(bench, monkeypatch):
    placed = []
    measure = transfer._waited

    def watch(bench, session, *rest):
        placed.append(session.state_tiers()["disk"])
        return measure(bench, session, *rest)

    monkeypatch.setattr(transfer, "_waited", watch)
    list(transfer.collect(bench, STEPS, rounds=1))
    assert set(placed) == {STEPS * STEP}


def test_the_methods_own_session_stays_as_it_was(bench):
    before = bench.runners["ours"].session.state_bytes()
    list(transfer.collect(bench, STEPS, rounds=1))
    assert bench.runners["ours"].session.state_bytes() == before
