"""How far a run is and how long it will take: a live bar on a terminal, plain lines elsewhere."""

import sys
import time

from sige.runs import identity


def cost(job: dict) -> float:
    """Rough work of a job, in forwards: only ratios between jobs matter, they spread the estimate of the time left."""
    forwards = 2 * len(job["methods"])
    latency = job["metrics"].get("latency")
    if latency:
        samples = latency["paper_runs"] if latency["protocol"] == "paper" else latency["rounds"]
        forwards += len(job["methods"]) * (samples + latency["warmup"])
    return float(forwards + len(job["methods"]) * ("time_share" in job["metrics"]))


def duration(seconds: float) -> str:
    """ "8 s", "4 min" and so on."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Progress:
    """``with Progress(jobs) as progress: progress.start(job); progress.finish(job, outcome)``."""

    def __init__(self, jobs: list[dict], stream=None):
        self.stream = stream or sys.stdout
        self.total, self.done = sum(map(cost, jobs)), 0.0
        self.count, self.number = len(jobs), 0
        self.bar = None
        self.began = time.monotonic()
        # Timed and untimed jobs run at different speeds, so each kind is estimated from its own past.
        self.rates: dict[bool, list[float]] = {}
        self.left = list(jobs)

    def __enter__(self):
        if self.stream.isatty() and self.count:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar.start()
            self.task = self.bar.add_task("starting", total=self.count)
        return self

    def __exit__(self, *error):
        if self.bar:
            self.bar.stop()

    def start(self, job: dict) -> None:
        """A job begins."""
        self.number += 1
        self.clock = time.monotonic()
        if self.bar:
            self.bar.update(self.task, description=f"{label(job)} · {self.remaining()}")

    def finish(self, job: dict, outcome: str) -> None:
        """A job has ended; ``outcome`` is told with it."""
        seconds = time.monotonic() - self.clock
        self.rates.setdefault(identity.is_timed(job), []).append(seconds / cost(job))
        self.left = [other for other in self.left if other is not job]
        line = f"[{self.number}/{self.count}] {label(job)} · {outcome} · {duration(seconds)} · {self.remaining()}"
        if self.bar:
            self.bar.update(self.task, advance=1)
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """A line beside the bar."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)

    def remaining(self) -> str:
        """The time left, estimated from the jobs that have ended."""
        if not self.left:
            return "all done"
        known = [rate for rates in self.rates.values() for rate in rates]
        if not known:
            return f"{len(self.left)} to go"
        overall = sum(known) / len(known)
        seconds = 0.0
        for job in self.left:
            rates = self.rates.get(identity.is_timed(job))
            seconds += cost(job) * (sum(rates) / len(rates) if rates else overall)
        return f"about {duration(seconds)} left"


def label(job: dict) -> str:
    """A job in a few words."""
    return f"{job['experiment']} · {job['model']['name']} · {job['edit']['name']} · {len(job['methods'])} methods"
