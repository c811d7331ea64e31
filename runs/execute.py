"""Run planned jobs in worker processes and store what they say. A failure is a row, and the rest goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from sige.runs import cells, rows
from sige.runs.plan import Planned
from sige.runs.process import Process, WorkerDied
from sige.runs.progress import Progress
from sige.runs.rows import canonical
from sige.runs.store import Store, clean
from sige.runs.tracker import NoTracker


class Outcome:
    """How many jobs ended how: a job counts as its worst row."""

    _WORST = ("interrupted", "error", "timeout", "oom", "missing_weights", "invalid", "skipped", "ok")

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self.interrupted = False
        self.unwritten = False  # the disk did not take the last job's rows

    def add(self, job: dict, found: list[dict]) -> str:
        """Count a job; returns its worst status."""
        statuses = {row["status"] for row in found}
        worst = next(status for status in self._WORST if status in statuses)
        self.counts[worst] = self.counts.get(worst, 0) + 1
        for row in found:
            if row["status"] != "ok":
                self.failures.append(f"{row['status']}: {row['edit']} {row['method']}: {row['reason']}")
        return worst

    def text(self) -> str:
        """ "12 ok, 1 skipped"."""
        return ", ".join(f"{count} {status}" for status, count in self.counts.items()) or "nothing to run"


def execute(
    planned: list[Planned],
    store: Store,
    timeout: float,
    tracker: NoTracker | None = None,
    command: list[str] | None = None,
    progress: Callable[[list[dict]], Progress] = Progress,
) -> Outcome:
    """Run what is not cached, grouped by model and hardware so that each group loads its model once.

    timeout: seconds a job may take.   command: command line of another worker than ours.   Ctrl-C ends the job in hand
    with an ``interrupted`` row and comes back with ``Outcome.interrupted``; all that was finished is in the store.
    """
    outcome = Outcome()
    todo = [plan for plan in planned if plan.state != "cached"]
    tracker = tracker or NoTracker()
    with progress([plan.job for plan in todo]) as bar:
        for group in _groups(todo):
            if not _run_group(group, store, timeout, tracker, command, bar, outcome):
                break
    return outcome


def _groups(todo: list[Planned]) -> list[list[Planned]]:
    groups: dict[str, list[Planned]] = {}
    for plan in todo:
        groups.setdefault(canonical({"model": plan.job["model"], "hardware": plan.job["hardware"]}), []).append(plan)
    return list(groups.values())


def _run_group(group, store, timeout, tracker, command, bar, outcome) -> bool:
    """Run the jobs of one worker after the other; a dead worker is replaced. False after Ctrl-C."""
    worker, disturbed = None, False
    told: dict = {}
    try:
        for plan in group:
            found: list[dict] = []
            record = {"run_id": plan.job["run_id"], "identity": plan.identity, "samples": {}}
            bar.start(plan.job)
            try:
                if plan.failure:
                    found = [rows.failure(plan.job, method, *plan.failure) for method in plan.job["methods"]]
                else:
                    if worker is None:
                        log = store.folder / "logs" / f"{plan.job['run_id']}.log"
                        worker = Process(plan.job["hardware"], log, command, disturbed)
                    clock = time.monotonic()
                    worker.run(plan.job, timeout, lambda message: _hear(message, found, record, told))
                    disturbed = worker.is_disturbed(time.monotonic() - clock)
            except WorkerDied as error:
                worker = None
                found = _cut_short(plan.job, found, error.status, error.reason)
            except KeyboardInterrupt:
                outcome.interrupted = True
                found = _cut_short(plan.job, found, "interrupted", "stopped by Ctrl-C")
            _keep(plan, found, {**record, "environment": told.get("environment")}, store, tracker, bar, outcome)
            if disturbed and worker is not None:
                worker.close()
                worker = None  # the next one's threads sleep
            if outcome.interrupted:
                bar.note(f"stopped: what was finished is in {store.path}; the same command goes on from there.")
                return False
        return True
    finally:
        if worker is not None:
            worker.kill() if outcome.interrupted else worker.close()


def _hear(message: dict, found: list[dict], record: dict, told: dict) -> None:
    """Sort one message of a worker."""
    if message["say"] == "ready":
        told["environment"] = message["environment"]
    elif message["say"] == "row":
        found.append(clean(message["row"]))
    elif message["say"] == "done":
        record["samples"], record["seconds"] = message["samples"], message["seconds"]
        record["declined"] = message.get("declined", [])


def _cut_short(job: dict, found: list[dict], status: str, reason: str) -> list[dict]:
    """What was heard of a job that did not end, and a failure row for each method."""
    return found + [rows.failure(job, method, status, reason) for method in job["methods"]]


def _keep(plan, found, record, store, tracker, bar, outcome) -> None:
    """Store one job's rows and record, and tell how it ended."""
    found = cells.named(found)
    worst = outcome.add(plan.job, found)
    store.write_record(plan.job["run_id"], record)
    written = store.merge(plan.job["config"], found)
    tracker.log(found)
    reasons = {row["reason"] for row in found if row["status"] != "ok"}
    bar.finish(plan.job, worst + (f" ({'; '.join(sorted(reasons))})" if reasons else ""))
    if not written and not outcome.unwritten:
        bar.note(f"cannot write {store.path} ({store.problem}); its rows are kept and tried again after every run.")
    outcome.unwritten = not written


def result_files(folder: Path) -> list[Path]:
    """Files of a results folder that a tracker keeps."""
    return [folder / name for name in ("runs.parquet", "runs.csv", "verdicts.csv", "report.html")]
