"""Identity: equal for equal runs, different for whatever makes another number. Plan: run, cached, or stale and why."""

import importlib
import importlib.util
import re

import pytest
import runner_fakes as fakes

from sige.paths import project_root
from sige.runs import identity, plan, rows
from sige.runs.metrics import Reading

MODELS = (project_root() / "conf" / "model").glob("*.yaml")
LOADERS = sorted({re.search(r"^loader: (\S+)", path.read_text(), re.M).group(1) for path in MODELS})


def identify(job):
    return identity.identify(job, "random:0", "")["run_id"]


def finish(store, planned, status="ok"):
    """Put a result of each planned job into the store, as the executor does."""
    for one in planned:
        store.write_record(one.job["run_id"], {"identity": one.identity})
        if status == "ok":
            found = [rows.of(one.job, Reading("fake", "macs", 1.0, "G"), rows.now(), 0.1, "synthetic", "float32")]
        else:
            found = [rows.failure(one.job, "fake", status, "because")]
        store.merge(one.job["config"], found)


def test_equal_jobs_have_one_identity(jobs):
    assert identify(jobs("brush-5")[0]) == identify(jobs("brush-5")[0])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"experiment": "other"}, id="experiment"),
        pytest.param({"model": {**fakes.MODEL, "seed": 1}}, id="model"),
        pytest.param({"method": {"fake": {"runner": "runner_fakes", "error": 0.5}}}, id="method"),
        pytest.param({"dataset": {"synthetic": {"height": 16, "width": 16, "seed": 7}}}, id="data"),
        pytest.param(
            {"hardware": {"name": "cpu", "device": "cpu", "dtype": "float32", "threads": 1, "allocator": "stock"}},
            id="allocator",
        ),
    ],
)
def test_another_configuration_is_another_run(jobs, changes):
    assert identify(jobs("brush-5")[0]) != identify(jobs("brush-5", **changes)[0])


def test_other_weights_are_another_run(jobs):
    job = jobs("brush-5")[0]
    assert identity.identify(job, "a", "")["run_id"] != identity.identify(job, "b", "")["run_id"]


@pytest.mark.parametrize(
    "metrics, depends",
    [
        pytest.param(("macs", "error"), False, id="counted"),
        pytest.param(("error", "latency"), True, id="timed"),
    ],
)
def test_only_timed_runs_depend_on_the_machine(jobs, monkeypatch, metrics, depends):
    chosen = {name: fakes.METRICS[name] for name in metrics}
    here = identify(jobs("brush-5", metric=chosen)[0])
    monkeypatch.setattr("sige.runs.environment.machine", lambda device, threads: "another machine")
    assert (identify(jobs("brush-5", metric=chosen)[0]) != here) == depends


def test_comments_and_layout_of_code_do_not_count(tmp_path):
    plain, commented = tmp_path / "a.py", tmp_path / "b.py"
    plain.write_text("x = 1\n")
    commented.write_text("# why\nx  =  1  # one\n")
    assert identity.file_digest(plain) == identity.file_digest(commented)


def test_the_code_digest_names_engine_kernels_data_and_the_files_of_the_job(jobs):
    files = identity.code_files(jobs("brush-5")[0])
    wanted = {
        "sige/session.py",
        "sige/kernels/ops.py",
        "sige/datasets/synthetic.py",
        "runner_fakes",
        "sige.runs.metrics.latency",
    }
    assert wanted <= set(files)
    assert not any(name.startswith(("sige/runs/", "sige/analysis/", "sige/tests/")) for name in files)


def test_nothing_there_is_to_run(planned):
    assert [(one.state, one.why) for one in planned("brush-5")] == [("run", "nothing there yet")]


def test_what_is_there_is_cached(planned, store):
    finish(store, planned("brush-5"))
    assert [one.state for one in planned("brush-5", "brush-30")] == ["cached", "run"]


def test_identical_jobs_are_planned_once(planned):
    assert len(planned("brush-5", "brush-5")) == 1


@pytest.mark.parametrize(
    "status, state",
    [
        pytest.param(status, state, id=status)
        for status, state in [
            ("interrupted", "run"),
            ("error", "run"),
            ("missing_weights", "run"),
            ("oom", "cached"),
            ("timeout", "cached"),
            ("invalid", "cached"),
            ("skipped", "cached"),
        ]
    ],
)
def test_which_failures_are_tried_again(planned, store, status, state):
    finish(store, planned("brush-5"), status)
    assert planned("brush-5")[0].state == state


def test_force_runs_what_is_there(jobs, planned, store):
    finish(store, planned("brush-5"))
    assert [(one.state, one.why) for one in plan.make(jobs("brush-5"), store, force=True)] == [("run", "forced")]


def test_changed_code_makes_stale_and_names_the_file(planned, store, monkeypatch):
    finish(store, planned("brush-5"))
    before = identity.code_files
    monkeypatch.setattr(identity, "code_files", lambda job: {**before(job), "sige/policy.py": "changed"})
    (one,) = planned("brush-5")
    assert (one.state, one.why) == ("stale", "code changed: sige/policy.py")


def test_another_library_version_makes_stale_and_is_named(planned, store, monkeypatch):
    finish(store, planned("brush-5"))
    monkeypatch.setattr("sige.runs.environment.libraries", lambda: {"torch": "99"})
    assert planned("brush-5")[0].why.endswith("-> 99")


def test_a_stale_run_is_replaced_not_doubled(planned, store, monkeypatch):
    finish(store, planned("brush-5"))
    before = identity.code_files
    monkeypatch.setattr(identity, "code_files", lambda job: {**before(job), "sige/policy.py": "changed"})
    finish(store, planned("brush-5"))
    assert len(store.load()) == 1
    assert planned("brush-5")[0].state == "cached"


def test_the_dry_table_says_state_edit_and_why(planned, store):
    finish(store, planned("brush-5"))
    text = plan.table(planned("brush-5", "brush-30"))
    assert all(word in text for word in ("cached", "run", "brush-30", "nothing there", "fake"))


def test_the_summary_counts(planned, store):
    finish(store, planned("brush-5"))
    assert plan.summary(planned("brush-5", "brush-30")) == "1 to run, 1 cached, 0 stale"


@pytest.mark.parametrize("loader", LOADERS)
def test_the_parts_that_a_loader_names_are_files(loader):
    parts = getattr(importlib.import_module(loader), "PARTS", ())
    assert [part for part in parts if importlib.util.find_spec(part) is None] == []
