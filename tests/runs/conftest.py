"""Fixtures of the runner's tests: jobs of the fake model, and a store in a temporary folder."""

import os
import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).parent)
# Configurations name modules; those of the tests must be found here and in worker processes.
sys.path.insert(0, _HERE)
os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])

import runner_fakes as fakes  # noqa: E402

from sige.runs import plan  # noqa: E402
from sige.runs.jobs import expand  # noqa: E402
from sige.runs.store import Store  # noqa: E402


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def jobs():
    """``jobs(edit, ..., **changes)``: one job for each edit, expanded from the fake configuration."""

    def make(*edits, **changes):
        named = {f"edit{number}": {"name": name} for number, name in enumerate(edits)}
        return expand(fakes.configuration(**({"edit": named} if edits else {}), **changes), {})

    return make


@pytest.fixture
def planned(jobs, store):
    """``planned(edit, ..., **changes)``: those jobs, planned against the store."""
    return lambda *edits, **changes: plan.make(jobs(*edits, **changes), store)
