"""The results table: what it accepts, what it refuses, and that a broken write leaves the former table readable."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest

from sige.analysis import schema

ROW = {
    "run_id": "fake-1",
    "status": "ok",
    "scope": "step",
    "metric": "macs",
    "value": 12.5,
    "unit": "G",
    "provenance": "measured",
    "edit_area": 0.25,
    "n": 1,
    "seed": 0,
}


def table(**changes):
    row = {
        name: (np.nan if dtype == "float64" else 0 if dtype == "int64" else "")
        for name, (dtype, _) in schema.COLUMNS.items()
    }
    return pd.DataFrame([{**row, **ROW, **changes}])


def test_empty_table_has_every_column_in_order():
    empty = schema.empty_table()
    assert list(empty.columns) == list(schema.COLUMNS)
    assert len(schema.validate(empty)) == 0


def test_columns_are_the_contract():
    assert " ".join(schema.COLUMNS) == (
        "run_id status reason experiment paper_cell model weights hardware device dtype dataset edit edit_area "
        "method policy scope metric value unit lo hi n baseline provenance code config seed started"
    )


def test_round_trip_keeps_values_and_empty_strings(tmp_path):
    schema.write_table(table(edit_area=np.nan), tmp_path / "runs.parquet")
    back = schema.read_table(tmp_path / "runs.parquet")
    assert back.loc[0, "value"] == 12.5
    assert back.loc[0, "reason"] == ""
    assert np.isnan(back.loc[0, "edit_area"])


def test_write_makes_csv_mirror_and_written_schema(tmp_path):
    schema.write_table(table(), tmp_path / "runs.parquet")
    assert list(pd.read_csv(tmp_path / "runs.csv").columns) == list(schema.COLUMNS)
    written = json.loads((tmp_path / "schema.json").read_text())
    assert written["version"] == schema.SCHEMA_VERSION
    assert list(written["columns"]) == list(schema.COLUMNS)


def test_infinite_psnr_is_a_value():
    assert schema.validate(table(metric="psnr", value=np.inf)).loc[0, "value"] == np.inf


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"status": "fine"}, "column `status` holds \\['fine'\\]; allowed are", id="unknown-status"),
        pytest.param({"provenance": "rumour"}, "column `provenance` holds \\['rumour'\\]", id="unknown-provenance"),
        pytest.param({"scope": "week"}, "column `scope` holds \\['week'\\]", id="unknown-scope"),
        pytest.param({"metric": ""}, "row 0 \\(run 'fake-1'\\) is ok but names no metric", id="ok-without-metric"),
        pytest.param({"value": np.nan}, "is ok but its value is NaN", id="ok-without-value"),
        pytest.param({"status": "oom", "value": np.nan}, "failed without a reason", id="failure-without-reason"),
        pytest.param({"status": "oom", "reason": "memory"}, "failed and carries a value", id="failure-with-value"),
        pytest.param({"run_id": ""}, "has no run_id", id="no-run-id"),
        pytest.param({"edit_area": 15.0}, "edit_area outside 0..1; give a fraction", id="area-in-percent"),
        pytest.param({"lo": 2.0, "hi": 1.0}, "lower end lies above its upper end", id="interval-upside-down"),
        pytest.param({"value": "many"}, "column `value` must hold float64 values", id="value-not-a-number"),
    ],
)
def test_refuses(changes, sentence):
    with pytest.raises(schema.SchemaError, match=sentence):
        schema.validate(table(**changes))


def test_refuses_missing_and_unknown_columns_by_name():
    wrong = table().drop(columns="metric").assign(extra=1)
    with pytest.raises(schema.SchemaError, match="missing \\['metric'\\], unknown \\['extra'\\]"):
        schema.validate(wrong)


def test_other_version_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 7)
    schema.write_table(table(), tmp_path / "runs.parquet")
    monkeypatch.undo()
    with pytest.raises(
        schema.SchemaError, match="has schema version 7, this code reads version 1; read it with the code that wrote it"
    ):
        schema.read_table(tmp_path / "runs.parquet")


def test_parquet_of_someone_else_is_refused(tmp_path):
    table().to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(schema.SchemaError, match="has no schema version, this code reads version 1"):
        schema.read_table(tmp_path / "runs.parquet")


def test_garbage_is_refused(tmp_path):
    (tmp_path / "runs.parquet").write_bytes(b"not a table")
    with pytest.raises(schema.SchemaError, match="cannot be read as a Parquet table"):
        schema.read_table(tmp_path / "runs.parquet")


def test_missing_table_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `make reproduce`"):
        schema.read_table(tmp_path / "runs.parquet")


def _no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "broken_call", [pytest.param("replace", id="replace-fails"), pytest.param("fsync", id="disk-full-while-writing")]
)
def test_failed_write_leaves_the_former_table(tmp_path, monkeypatch, broken_call):
    path = schema.write_table(table(value=1.0), tmp_path / "runs.parquet")
    monkeypatch.setattr(os, broken_call, _no_space)
    with pytest.raises(OSError, match="No space left"):
        schema.write_table(table(value=2.0), path)
    assert schema.read_table(path).loc[0, "value"] == 1.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs.csv", "runs.parquet", "schema.json"]


def test_killed_writer_leaves_a_readable_table_and_its_leftover_goes(tmp_path):
    path = schema.write_table(table(value=1.0), tmp_path / "runs.parquet")
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), 9)
        schema.write_table(table(value=2.0), path)
        os._exit(1)
    os.waitpid(child, 0)
    assert (tmp_path / f".runs.parquet.{child}.tmp").exists()
    assert schema.read_table(path).loc[0, "value"] == 1.0
    schema.write_table(table(value=3.0), path)
    assert not list(tmp_path.glob(".*.tmp"))
