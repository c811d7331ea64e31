"""The store: rows replace their predecessors, and neither a killed process nor a full disk harms what is there."""

import errno
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sige.analysis import schema
from sige.runs import rows
from sige.runs.errors import StoreError
from sige.runs.metrics import Reading
from sige.runs.store import Store, clean, replaced

ROOT = Path(__file__).resolve().parents[2]


def made(job, value=1.0, run_id="r1", metric="macs"):
    return {
        **rows.of(
            {**job, "run_id": run_id, "code": "c"},
            Reading("fake", metric, value, "G"),
            rows.now(),
            0.1,
            "synthetic",
            "float32",
        )
    }


@pytest.fixture
def job(jobs):
    return jobs("brush-5")[0]


def test_an_empty_store_is_an_empty_table(store):
    assert store.load().empty


def test_rows_come_back(store, job):
    store.merge(job["config"], [made(job, 3.0)])
    assert store.load()[["metric", "value", "edit"]].to_dict("records") == [
        {"metric": "macs", "value": 3.0, "edit": "brush-5"}
    ]


def test_rows_of_the_same_configuration_are_replaced(store, job):
    store.merge(job["config"], [made(job, 1.0, "old"), made(job, 1.0, "old", "state_bytes.total")])
    store.merge(job["config"], [made(job, 2.0, "new")])
    assert store.load()[["run_id", "value"]].to_dict("records") == [{"run_id": "new", "value": 2.0}]


def test_rows_of_other_configurations_stay(store, jobs):
    first, second = jobs("brush-5", "brush-30")
    store.merge(first["config"], [made(first, 1.0, "a")])
    store.merge(second["config"], [made(second, 2.0, "b")])
    assert set(store.load()["run_id"]) == {"a", "b"}


def test_shipped_rows_stay(store, job):
    shipped = {**made(job, 9.0, "other machine"), "provenance": "shipped"}
    table = replaced(schema.empty_table(), "", [shipped])
    assert set(replaced(table, job["config"], [made(job)])["provenance"]) == {"shipped", "measured"}


def test_a_value_that_is_not_a_number_becomes_a_failure(job):
    row = clean(made(job, float("nan")))
    assert (row["status"], row["reason"], row["metric"]) == ("error", "macs came out as NaN", "")


def test_a_table_of_another_schema_version_is_refused_by_name(store, job, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    store.merge(job["config"], [made(job)])
    monkeypatch.undo()
    with pytest.raises(schema.SchemaError, match=r"runs.parquet has schema version 99, this code reads version 1"):
        store.load()


def test_a_table_of_another_schema_version_is_not_overwritten(store, job, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    store.merge(job["config"], [made(job)])
    monkeypatch.undo()
    before = store.path.read_bytes()
    with pytest.raises(schema.SchemaError):
        store.merge(job["config"], [made(job)])
    assert store.path.read_bytes() == before


@pytest.fixture
def full_disk(monkeypatch):
    """Every fsync says that the disk is full, until ``full_disk()`` makes room."""

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(schema.os, "fsync", refuse)
    return monkeypatch.undo


def test_a_full_disk_leaves_the_table_as_it_was(store, jobs, request):
    first, second = jobs("brush-5", "brush-30")
    store.merge(first["config"], [made(first, 1.0, "a")])
    request.getfixturevalue("full_disk")
    assert not store.merge(second["config"], [made(second, 2.0, "b")])
    assert list(store.load()["run_id"]) == ["a"]


def test_rows_that_met_a_full_disk_are_written_once_there_is_room(store, job, full_disk):
    assert not store.merge(job["config"], [made(job)])
    full_disk()
    store.close()
    assert list(store.load()["run_id"]) == ["r1"]


def test_a_disk_that_stays_full_is_told_at_the_end(store, job, full_disk):
    store.merge(job["config"], [made(job)])
    with pytest.raises(
        StoreError,
        match=r"cannot write .*runs.parquet: No space left on device; the table there is unharmed, 1 rows ",
    ):
        store.close()


def test_a_full_disk_leaves_no_temporary_files(store, job, full_disk):
    store.merge(job["config"], [made(job)])
    assert {path.name for path in store.folder.iterdir()} <= {"runs.lock"}


_WRITER = """
import json, sys
from sige.runs.store import Store
row = json.load(sys.stdin)
store = Store(sys.argv[1])
for number in range(10_000):
    store.merge(str(number), [{**row, "run_id": str(number), "config": str(number)}])
    print(number, flush=True)
"""


@pytest.mark.parametrize("writes", [pytest.param(count, id=f"after-{count}") for count in (1, 4, 9)])
def test_a_killed_writer_loses_nothing_it_had_finished(store, job, writes):
    command = [sys.executable, "-c", _WRITER, str(store.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdin.write(json.dumps(made(job)))
        writer.stdin.close()
        finished = [writer.stdout.readline().strip() for _ in range(writes)]
        writer.send_signal(signal.SIGKILL)  # most likely in the middle of the next write
        finished += writer.stdout.read().split()
    assert set(finished) <= set(store.load()["run_id"])


def test_two_writers_lose_nothing_to_each_other(store, jobs):
    first, second = jobs("brush-5", "brush-30")

    def write(job, name):
        mine = Store(store.folder)
        for number in range(5):
            mine.merge(f"{name}{number}", [{**made(job, number, f"{name}{number}"), "config": f"{name}{number}"}])

    writers = [threading.Thread(target=write, args=pair) for pair in ((first, "a"), (second, "b"))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(store.load()) == 10


def test_the_record_of_a_run_comes_back(store):
    store.write_record("r1", {"samples": {"latency_ms": {"dense": [1.0, 2.0]}}})
    assert store.record("r1")["samples"]["latency_ms"]["dense"] == [1.0, 2.0]


def test_a_record_that_is_not_there_is_empty(store):
    assert store.record("nobody") == {}
