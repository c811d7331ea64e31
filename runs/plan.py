"""What will be run, what is there already, and why: compare each job's identity with the table."""

import importlib
from dataclasses import dataclass

import pandas as pd

from sige.datasets import registry
from sige.datasets.edit import MissingSample
from sige.runs import identity
from sige.runs.errors import JobFailure
from sige.runs.rows import canonical
from sige.runs.store import RETRIED, Store


@dataclass
class Planned:
    """One job with its identity; ``state`` is run, cached or stale, ``failure`` a (status, reason) known beforehand."""

    job: dict
    identity: dict
    state: str
    why: str
    failure: tuple[str, str] | None = None


def make(jobs: list[dict], store: Store, force: bool = False) -> list[Planned]:
    """Plan the jobs against what is in the store. Identical jobs are planned once."""
    table = store.load()
    table = table[table["provenance"] == "measured"]
    planned, seen, known = [], set(), {}
    for job in jobs:
        weights, data, failure = _inputs(job, known)
        parts = identity.identify(job, weights, data)
        if parts["run_id"] in seen:
            continue
        seen.add(parts["run_id"])
        job = {**job, "run_id": parts["run_id"], "code": parts["code"]}
        state, why = _state(table[table["config"] == job["config"]], parts, store, force)
        planned.append(Planned(job, parts, state, why, failure))
    return planned


def _inputs(job, known):
    """Digests of weights and data, and the failure row of a job that lacks one of them. Weights are looked at once a model:
    ``known`` has what was found, and their files may be large."""
    model = canonical(job["model"])
    if model not in known:
        try:
            known[model] = importlib.import_module(job["model"]["loader"]).weights_digest(job["model"]), None
        except JobFailure as error:
            known[model] = "missing", (error.status, error.reason)
    weights, failure = known[model]
    if failure:
        return weights, "", failure
    try:
        return weights, registry.digest(job["edit"]["name"], **job["dataset"]), None
    except MissingSample as error:
        return weights, "missing", ("skipped", str(error))


def _state(rows: pd.DataFrame, parts: dict, store: Store, force: bool) -> tuple[str, str]:
    if rows.empty:
        return "run", "nothing there yet"
    same = rows[rows["run_id"] == parts["run_id"]]
    if same.empty:
        before = store.record(rows["run_id"].iloc[-1]).get("identity", {})
        return "stale", identity.difference(before, parts)
    again = sorted(set(same["status"]) & set(RETRIED))
    if again:
        return "run", f"ended in {', '.join(again)} last time"
    if force:
        return "run", "forced"
    return "cached", f"{len(same)} rows of {same['started'].max()}"


def table(planned: list[Planned]) -> str:
    """The plan for reading, one line a job."""
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in ("", "experiment", "model", "hardware", "edit", "methods", "metrics", "why"):
        made.add_column(column, overflow="fold")
    for plan in planned:
        job = plan.job
        hardware = f"{job['hardware']['name']} {job['hardware']['dtype']} {job['hardware']['allocator']}"
        why = "; ".join(filter(None, [plan.why, job["note"], plan.failure and plan.failure[1]]))
        made.add_row(
            plan.state,
            job["experiment"],
            job["model"]["name"],
            hardware,
            job["edit"]["name"],
            " ".join(job["methods"]),
            " ".join(job["metrics"]),
            why,
        )
    console = Console(width=max(160, Console().width))
    with console.capture() as captured:
        console.print(made)
    return captured.get()


def summary(planned: list[Planned]) -> str:
    """ "3 to run, 40 cached, 1 stale"."""
    counts = {state: sum(plan.state == state for plan in planned) for state in ("run", "cached", "stale")}
    return f"{counts['run']} to run, {counts['cached']} cached, {counts['stale']} stale"
