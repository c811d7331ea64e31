"""A small table with made-up numbers. None of them was measured; the device is called a fake."""

import json

import numpy as np
import pandas as pd
import pytest

from sige.analysis import schema, targets

DEVICE = "made-up CPU"
AREAS = {
    "church-432": 0.0120,
    "church-423": 0.1545,
    "brush-2": 0.02,
    "brush-5": 0.05,
    "brush-30": 0.30,
    "rectangle-5": 0.05,
}
SAVING = {"sige_public": 8.8, "sige": 7.5, "pixel": 11.0, "incremental": 9.6}
CLASSES = ("conv", "gemm", "attention", "gather_scatter", "norm", "pointwise", "other")


def make_row(**changes):
    """Return one valid row of the table as a dictionary."""
    row = {
        name: np.nan if dtype == "float64" else 0 if dtype == "int64" else ""
        for name, (dtype, _) in schema.COLUMNS.items()
    }
    row |= {"run_id": "fake-0", "status": "ok", "experiment": "fake", "model": "ddpm_church256", "weights": "random"}
    row |= {"hardware": "cpu", "device": DEVICE, "dtype": "float32", "dataset": "church", "edit": "church-432"}
    row |= {"edit_area": 0.012, "method": "sige", "policy": "sige", "scope": "step", "metric": "macs", "value": 1.0}
    row |= {"unit": "G", "n": 9, "provenance": "measured", "code": "c0de", "config": json.dumps({"fake": True})}
    return row | {"started": "2026-01-01T00:00:00+00:00"} | changes


def make_table(*rows):
    """Return a validated table of rows given as dictionaries of changes."""
    return schema.validate(pd.DataFrame([make_row(**row) for row in rows], columns=list(schema.COLUMNS)))


def fake_rows():
    """Return rows of every metric for two dense and four sparse methods at six edits, and one failed run."""
    rows = []
    for edit, area in AREAS.items():
        for method in ("dense", "dense_channels_last", *SAVING):
            share = 1.0 if method.startswith("dense") else 1 / SAVING[method] + 0.85 * max(area - 0.012, 0)
            common = {"edit": edit, "edit_area": area, "method": method, "run_id": f"fake-{edit}"}
            common["policy"] = "" if method.startswith("dense") else method
            macs, ms = 248.0 * share, 2600.0 * (share if share < 1 else 1.08 if method == "dense" else 1.0) + 40
            numbers = [("macs", macs, "G"), ("latency", ms, "ms"), ("peak_memory", 900 + 600 * (share < 1), "MiB")]
            if share < 1:
                dense_ms = 2640.0
                numbers += [("dense_macs", 248.0, "G"), ("macs_ratio", 1 / share, "x"), ("speedup", dense_ms / ms, "x")]
                numbers += [
                    ("efficiency", dense_ms / ms * share, "x"),
                    ("gate", 1.0, "bool"),
                    ("psnr", 38 - 20 * area, "dB"),
                ]
                numbers += [("error_rel_l2", 0.01 + share / 9, "1"), ("error_rel_l2_in_mask", 0.03 + share / 4, "1")]
                numbers += [
                    ("error_max", 0.05, "1"),
                    ("state_bytes.conv_input", 510.0, "MiB"),
                    ("state_bytes.kv", 12.5, "MiB"),
                ]
                numbers += [
                    ("state_bytes.total", 522.5, "MiB"),
                    ("plan_ms", 4.0, "ms"),
                    ("active_fraction", area * 1.6, "fraction"),
                ]
            weights = np.array([60, 3, 2, 4 if share == 1 else 18, 12, 14, 5], dtype=float)
            numbers += [
                (f"time_share.{name}", value, "fraction")
                for name, value in zip(CLASSES, weights / weights.sum(), strict=True)
            ]
            for metric, value, unit in numbers:
                timed = metric in ("latency", "speedup", "efficiency")
                interval = {"lo": 0.97 * value, "hi": 1.04 * value} if timed else {}
                baseline = "dense_channels_last" if metric in ("speedup", "efficiency") else ""
                scope = "edit" if metric == "plan_ms" else "step"
                rows.append(
                    {
                        **common,
                        "metric": metric,
                        "value": value,
                        "unit": unit,
                        "baseline": baseline,
                        "scope": scope,
                        **interval,
                    }
                )
    failed = {
        "edit": "brush-60",
        "method": "incremental",
        "run_id": "fake-oom",
        "status": "oom",
        "metric": "",
        "value": np.nan,
    }
    return [*rows, {**failed, "reason": "made-up: 24 GiB were not enough"}]


@pytest.fixture(scope="session")
def papers():
    """The papers' numbers of the project itself."""
    return targets.load()


@pytest.fixture(scope="session")
def fake_table():
    """The made-up table."""
    return make_table(*fake_rows())


@pytest.fixture
def rows_of():
    """A function from dictionaries of changes to a validated table."""
    return make_table


@pytest.fixture(scope="module")
def fake_results(tmp_path_factory, fake_table):
    """A results folder: the made-up table, a run that failed with markup for a reason, and the record of one of its runs."""
    folder = tmp_path_factory.mktemp("results")
    failed = {"run_id": "fake-markup", "status": "error", "reason": "<script>alert(1)</script>", "metric": ""}
    markup = make_table({**failed, "value": np.nan})
    schema.write_table(pd.concat([fake_table, markup], ignore_index=True), folder / "runs.parquet")
    (folder / "samples").mkdir()
    record = {"environment": {"machine": DEVICE, "libraries": {"torch": "0.0-fake"}, "threads": 2}}
    (folder / "samples" / "fake-church-432.json").write_text(json.dumps(record))
    return folder
