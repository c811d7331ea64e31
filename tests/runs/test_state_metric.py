"""Remembered bytes as rows: by kind, by stored type, and by tier where a method has a memory budget."""

from types import SimpleNamespace

import pytest
import runner_fakes as fakes
import torch

from sige.runs.errors import UserError
from sige.runs.methods import session
from sige.runs.metrics import state
from sige.runs.models.zoo import Zoo

SIDE = fakes.SIZE
DIALS = {"block": 2, "min_resolution": 1}


def rows(**options):
    """{metric: bytes} of two recorded steps of the fake network without data."""
    zoo = Zoo(fakes.MODEL, "meta")
    runner = session.build("ours", {"policy": "incremental", "dials": DIALS, **options}, zoo, {"dtype": "float32"})
    with torch.no_grad(), runner.session.record():
        for _ in range(2):
            runner.module(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    bench = SimpleNamespace(runners={"ours": runner})
    return {reading.metric: round(reading.value * 2**20) for reading in state.collect(bench)}


MAPS = 2 * 4 * SIDE * SIDE * 4  # the input of the second convolution, in two steps


def test_bytes_by_type_add_up_to_the_total():
    found = rows()
    assert found["state_dtype.float32"] == found["state_bytes.total"] > MAPS


def test_a_storage_type_shows_as_such():
    found = rows(dials={**DIALS, "state_dtype": "float8_e4m3fn"})
    assert found["state_dtype.float8_e4m3fn"] == MAPS / 4


def test_tiers_are_told_where_there_is_a_budget():
    found = rows(memory_budget={"device": MAPS / 2, "host": MAPS / 2})
    assert (found["state_tiers.host"], found["state_tiers.disk"]) == (MAPS / 2, MAPS / 2)
    assert sum(size for name, size in found.items() if name.startswith("state_tiers.")) == found["state_bytes.total"]


def test_no_tiers_are_told_without_a_budget():
    assert not [name for name in rows() if name.startswith("state_tiers.")]


def test_a_budget_that_is_none_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="memory_budget=-1 must be a number of bytes above 0"):
        session.check({"policy": "incremental", "memory_budget": -1})
