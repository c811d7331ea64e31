"""A worker process: it loads one model once and measures the jobs it is sent, one after the other.

In: one JSON line a job on standard input, the model and the hardware with the first. Out: JSON lines on the stream that
was standard output (what libraries print goes to standard error instead):

    {"say": "ready", "environment": {...}}
    {"say": "tick"}                                    still alive, one piece of work done
    {"say": "row", "row": {...}}                       one reading
    {"say": "done", "samples": {...}, "seconds": ..., "declined": [...]}
                                                       the job is over; failures came as rows. ``declined``: what the kernel
                                                       backend left to `reference`, with the reason
"""

import importlib
import json
import os
import sys
import time
import traceback


def _claim_stdout():
    """Keep the pipe to the parent for messages and point standard output at standard error."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


class Worker:
    """Message loop around the loaded model."""

    def __init__(self, stream):
        self.stream = stream
        self.zoo = self.kept = self.measuring = None

    def say(self, **message) -> None:
        """One message to the parent."""
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()

    def load(self, job: dict) -> None:
        """Load the model of the first job."""
        import torch

        from sige.runs import environment

        hardware = job["hardware"]
        if hardware.get("threads"):
            torch.set_num_threads(hardware["threads"])
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(hardware.get("tf32"))
        torch.backends.cudnn.benchmark = True
        self.zoo, self.kept = self.measuring.load(job["model"], hardware)
        self.say(say="ready", environment=environment.describe(hardware))

    def run(self, job: dict) -> None:
        """Measure one job; every exception becomes a failure row."""
        from sige.kernels import backends
        from sige.runs import rows
        from sige.runs.errors import status_of
        from sige.runs.metrics import Reading

        started, clock, bench = rows.now(), time.perf_counter(), None
        try:
            if self.zoo is None:
                self.measuring = importlib.import_module(job["model"].get("bench") or "sige.runs.measure")
                self.load(job)
            for item in self.measuring.measure(job, self.zoo, self.kept, tick=lambda: self.say(say="tick")):
                if not isinstance(item, Reading):
                    bench = item
                else:
                    dtype = bench.runners[item.method].dtype
                    self.say(
                        say="row",
                        row=rows.of(job, item, started, area=bench.edit.area, dataset=bench.edit.dataset, dtype=dtype),
                    )
        except Exception as error:
            traceback.print_exc()
            status, reason = status_of(error)
            for method in job["methods"]:
                if bench is None or method not in bench.failures:
                    self.say(say="row", row=rows.failure(job, method, status, reason, started))
        for method, (status, reason) in (bench.failures if bench else {}).items():
            self.say(say="row", row=rows.failure(job, method, status, reason, started))
        samples = bench.samples if bench else {}
        self.say(say="done", samples=samples, seconds=time.perf_counter() - clock, declined=list(backends.declined()))


def main() -> None:
    """Serve jobs until standard input ends."""
    worker = Worker(_claim_stdout())
    for line in sys.stdin:
        worker.run(json.loads(line))


if __name__ == "__main__":
    main()
