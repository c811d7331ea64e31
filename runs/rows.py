"""Rows of the one long table, from a job and a reading or a failure."""

import datetime
import json
import math

from sige.runs.metrics import Reading


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def canonical(config: dict) -> str:
    """A configuration as compact JSON with sorted keys: equal text means equal configuration."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _base(job: dict, method: str, started: str) -> dict:
    options = job["methods"].get(method, {})
    hardware = job["hardware"]
    return {
        "run_id": job["run_id"],
        "status": "ok",
        "reason": "",
        "experiment": job["experiment"],
        "paper_cell": job["edit"].get("paper_cell") or "",
        "model": job["model"]["name"],
        "weights": job["model"]["weights"],
        # The settings of the allocator are part of what a time means, so they are part of the hardware's name.
        "hardware": hardware["name"] + ("-stock" if hardware["allocator"] == "stock" else ""),
        "device": hardware["machine"],
        "dtype": options.get("dtype") or hardware["dtype"],
        "dataset": job["edit"].get("dataset") or "",
        "edit": job["edit"]["name"],
        "edit_area": math.nan,
        "method": method,
        "policy": options.get("policy") or "",
        "scope": "step",
        "metric": "",
        "value": math.nan,
        "unit": "",
        "lo": math.nan,
        "hi": math.nan,
        "n": 0,
        "baseline": "",
        "provenance": "measured",
        "code": job["code"],
        "config": job["config"],
        "seed": job["seed"],
        "started": started,
    }


def of(job: dict, reading: Reading, started: str, area: float, dataset: str, dtype: str) -> dict:
    """The row of one reading; ``area`` is the fraction of the picture under the mask."""
    values = {
        name: getattr(reading, name)
        for name in ("metric", "value", "unit", "scope", "lo", "hi", "n", "baseline", "reason")
    }
    if reading.scope == "step":  # one forward of the model, which may be a layer on its own
        values["scope"] = job["model"].get("scope", "step")
    return {**_base(job, reading.method, started), **values, "edit_area": area, "dataset": dataset, "dtype": dtype}


def failure(job: dict, method: str, status: str, reason: str, started: str | None = None) -> dict:
    """The row of a method that gave no numbers; a reason is never empty."""
    return {**_base(job, method, started or now()), "status": status, "reason": reason or status}
