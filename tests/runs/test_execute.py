"""Jobs in worker processes: whatever happens to a worker becomes a row, and the rest goes on."""

import io
import signal
import sys

import pytest

from sige.runs import plan
from sige.runs.execute import execute
from sige.runs.progress import Progress
from sige.runs.tracker import NoTracker

COMMAND = [sys.executable, "-m", "fake_worker"]


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is heard, though a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(jobs, store):
    """``run(edit, ...)`` executes those jobs with the fake worker; returns (outcome, rows, what was printed)."""

    def go(*edits, timeout=30.0, tracker=None):
        stream = io.StringIO()
        outcome = execute(
            plan.make(jobs(*edits), store), store, timeout, tracker, COMMAND, lambda todo: Progress(todo, stream)
        )
        return outcome, store.load(), stream.getvalue()

    return go


def statuses(table, edit):
    return sorted(set(table[table["edit"] == edit]["status"]))


def test_a_job_that_ends_well_is_in_the_table(run):
    outcome, table, _ = run("brush-5")
    assert outcome.counts == {"ok": 1}
    assert sorted(table["method"]) == ["dense", "dense_channels_last", "fake"]


@pytest.mark.parametrize(
    "edit, timeout, status, reason",
    [
        pytest.param("brush-7", 30, "error", "the worker was ended with exit code 1: the model is unwell", id="exit"),
        pytest.param(
            "brush-8", 30, "oom", "killed by signal 9, most likely by the system for want of memory", id="killed"
        ),
        pytest.param("brush-9", 2, "timeout", "not done after timeout_s=2 s", id="timeout"),
    ],
)
def test_a_worker_that_is_lost_is_a_row_and_the_rest_goes_on(run, edit, timeout, status, reason):
    outcome, table, _ = run(edit, "brush-5", timeout=timeout)
    failed = table[(table["edit"] == edit) & (table["status"] == status)]
    assert list(failed["method"]) == ["dense", "dense_channels_last", "fake"]
    assert all(text.startswith(reason) for text in failed["reason"])
    assert statuses(table, "brush-5") == ["ok"]
    assert outcome.counts == {status: 1, "ok": 1}


def test_what_a_lost_worker_had_said_is_kept(run):
    _, table, _ = run("brush-7")
    assert table[table["status"] == "ok"]["method"].tolist() == ["dense"]


def test_jobs_of_one_model_and_hardware_share_a_worker(run, store):
    run("brush-5", "brush-30")
    pids = {store.record(run_id)["environment"]["pid"] for run_id in store.load()["run_id"]}
    assert len(pids) == 1


def test_ctrl_c_keeps_what_is_finished_and_says_what_is_not(run):
    outcome, table, printed = run("brush-5", "brush-10", "brush-30")
    assert outcome.interrupted
    assert statuses(table, "brush-5") == ["ok"]
    assert "interrupted" in statuses(table, "brush-10")
    assert statuses(table, "brush-30") == []
    assert "the same command goes on from there" in printed


def test_after_ctrl_c_only_the_rest_is_run(run, jobs, store):
    run("brush-5", "brush-10", "brush-30")
    states = [one.state for one in plan.make(jobs("brush-5", "brush-10", "brush-30"), store)]
    assert states == ["cached", "run", "run"]


def test_a_missing_sample_is_a_skipped_row_without_a_worker(jobs, store, tmp_path):
    wanted = jobs(edit={"a": {"name": "church-432"}}, dataset={"church": {"folder": str(tmp_path)}})
    execute(
        plan.make(wanted, store),
        store,
        30.0,
        command=["/no/such/program"],
        progress=lambda todo: Progress(todo, io.StringIO()),
    )
    table = store.load()
    assert set(table["status"]) == {"skipped"}
    assert table["reason"].str.contains(str(tmp_path), regex=False).all()


def test_a_second_run_does_nothing(run):
    run("brush-5")
    outcome, _, printed = run("brush-5")
    assert (outcome.counts, printed) == ({}, "")


def test_raw_samples_and_identity_stand_in_the_record(run, store):
    _, table, _ = run("brush-5")
    record = store.record(table["run_id"].iloc[0])
    assert record["samples"] == {"latency_ms": {"dense": [1.0]}}
    assert record["declined"] == ["it is tired"]
    assert record["identity"]["run_id"] == table["run_id"].iloc[0]


def test_lines_say_where_it_is_and_how_long_it_takes(run):
    *_, printed = run("brush-5", "brush-30")
    first, second = printed.splitlines()
    assert first.startswith("[1/2] test · fake · brush-5 · 3 methods · ok · ") and first.endswith(" left")
    assert second.startswith("[2/2] test · fake · brush-30") and second.endswith("all done")


def test_the_tracker_hears_every_row(run):
    heard = []

    class Ear(NoTracker):
        def log(self, rows):
            heard.extend(rows)

    run("brush-5", tracker=Ear())
    assert [row["method"] for row in heard] == ["dense", "dense_channels_last", "fake"]


def test_a_full_disk_does_not_stop_the_run(run, store, monkeypatch):
    from sige.analysis import schema

    real, calls = schema.write_table, []

    def first_fails(table, path):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(table, path)

    monkeypatch.setattr(schema, "write_table", first_fails)
    _, table, printed = run("brush-5", "brush-30")
    assert "No space left on device" in printed
    assert set(table["edit"]) == {"brush-5", "brush-30"}
