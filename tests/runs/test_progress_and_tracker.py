"""Telling how far a run is, and sending results elsewhere."""

import io
from pathlib import Path

import pytest

from sige.runs import progress, tracker
from sige.runs.errors import UserError
from sige.runs.progress import Progress, cost, duration


@pytest.mark.parametrize(
    "seconds, text",
    [
        pytest.param(8, "8 s", id="seconds"),
        pytest.param(240, "4 min", id="minutes"),
        pytest.param(9000, "2.5 h", id="hours"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_timed_jobs_cost_more(jobs):
    counted = jobs(metric={"macs": {"collect": "sige.runs.metrics.macs"}})[0]
    assert cost(jobs()[0]) > 3 * cost(counted)


def test_the_time_left_follows_from_the_jobs_that_ended(jobs, monkeypatch):
    clock = iter([0, 0, 10, 10, 20])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    todo = jobs("brush-5", "brush-30", "rectangle-5")
    stream = io.StringIO()
    with Progress(todo, stream) as bar:
        bar.start(todo[0])
        bar.finish(todo[0], "ok")
    assert stream.getvalue() == "[1/3] test · fake · brush-5 · 3 methods · ok · 10 s · about 20 s left\n"


def test_a_terminal_gets_a_bar(jobs):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    todo = jobs("brush-5")
    with Progress(todo, Terminal()) as bar:
        bar.start(todo[0])
        bar.finish(todo[0], "ok")
        assert bar.bar.tasks[0].completed == 1


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match="unknown tracker 'mlflow'; choose none or wandb."):
        tracker.check("mlflow")


def test_wandb_writes_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "runs.csv").write_text("a\n1\n")
    found = tracker.open_tracker("wandb", tmp_path, {"experiment": "test"})
    row = {"status": "ok", "method": "sige", "metric": "macs", "value": 1.0, "edit": "brush-5", "edit_area": 0.05}
    found.log([row])
    found.finish([tmp_path / "runs.csv", tmp_path / "missing.csv"])
    assert list(Path(tmp_path / "wandb").glob("offline-run-*/*.wandb"))
