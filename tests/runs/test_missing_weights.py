"""Weights that are not there: one row a method that says what to put where, before anything heavy is loaded."""

import subprocess
import sys

import pytest
import runner_fakes as fakes

from sige.runs import plan
from sige.runs.execute import execute
from sige.runs.jobs import expand

MODEL = {"name": "tiny", "loader": "sige.runs.models.unet2d", "weights": "pretrained", "weights_path": None, "seed": 0}
MODEL["input"] = {"height": 16, "width": 16}
METHODS = {name: {"runner": "sige.runs.methods.session", "policy": name} for name in ("sige", "incremental")}


class Silent:
    """A progress bar that shows nothing."""

    def __init__(self, jobs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self, job):
        pass

    def finish(self, job, outcome):
        pass

    def note(self, text):
        pass


def planned(store, *edits):
    named = {f"edit{number}": {"name": name} for number, name in enumerate(edits)}
    return plan.make(expand(fakes.configuration(model=MODEL, method=METHODS, edit=named), {}), store)


def test_no_worker_is_started(store):
    outcome = execute(planned(store, "brush-5"), store, 5, command=["a-command-that-does-not-exist"], progress=Silent)
    assert outcome.counts == {"missing_weights": 1}
    assert not (store.folder / "logs").exists()


def test_every_method_has_a_row_that_says_what_to_do(store):
    execute(planned(store, "brush-5"), store, 5, command=["a-command-that-does-not-exist"], progress=Silent)
    table = store.load()
    assert {"sige", "incremental"} <= set(table["method"]) and set(table["status"]) == {"missing_weights"}
    assert all("weights_path" in reason for reason in table["reason"])


def test_weights_are_looked_for_once_a_model(store, monkeypatch):
    asked = []
    monkeypatch.setattr(fakes, "weights_digest", lambda model: asked.append(model["name"]) or "w")
    named = {f"edit{number}": {"name": name} for number, name in enumerate(("brush-5", "brush-30"))}
    plans = plan.make(expand(fakes.configuration(edit=named), {}), store)
    assert (len(plans), asked) == (2, ["fake"])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Names of the modules that a process of its own has loaded when it has planned."""
    script = (
        "import sys; sys.path.insert(0, {here!r}); import runner_fakes as fakes, test_missing_weights as test\n"
        "from sige.runs.store import Store\n"
        "(plan,) = test.planned(Store({folder!r}), 'brush-5')\n"
        "assert plan.failure[0] == 'missing_weights', plan\n"
        "print(*sys.modules)\n"
    )
    here = str(test_no_worker_is_started.__code__.co_filename).rsplit("/", 1)[0]
    code = script.format(here=here, folder=str(tmp_path_factory.mktemp("planned")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_planning_loads_no_model_library(loaded, library):
    assert "runner_fakes" in loaded and library not in loaded
