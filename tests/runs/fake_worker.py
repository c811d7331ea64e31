"""A worker that speaks the protocol and computes nothing; what becomes of it depends on the edit's name."""

import json
import os
import signal
import sys
import time


def serve():
    """Answer each job on standard input."""
    from sige.runs import rows
    from sige.runs.metrics import Reading

    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"say": "ready", "environment": {"pid": os.getpid()}}), flush=True)
        for method in job["methods"]:
            row = rows.of(job, Reading(method, "macs", 1.0, "G"), rows.now(), 0.1, "synthetic", "float32")
            print(json.dumps({"say": "row", "row": row}), flush=True)
            if job["edit"]["name"] == "brush-7":
                sys.exit("the model is unwell")
            if job["edit"]["name"] == "brush-8":
                os.kill(os.getpid(), signal.SIGKILL)
            if job["edit"]["name"] == "brush-9":
                time.sleep(60)
            if job["edit"]["name"] == "brush-10":
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(60)
        done = {"say": "done", "samples": {"latency_ms": {"dense": [1.0]}}, "seconds": 0.1, "declined": ["it is tired"]}
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    serve()
