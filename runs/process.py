"""The parent's end of a worker process: start it, send it a job, read what it says, end it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from sige.runs import allocator

COMMAND = [sys.executable, "-m", "sige.runs.worker"]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WAITING = ("OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


class WorkerDied(Exception):
    """The worker is gone in the middle of a job. ``status`` and ``reason`` are what its row says."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def environment(hardware: dict, sleep: bool = False) -> dict[str, str]:
    """Environment of a worker: threads, allocator and kernel backend of the hardware's configuration, and the place of our package.

    sleep: its threads wait for each other asleep, not spinning. Spinning ones that take all cores are bound to a core each
    (on Linux), so that none is moved, or put beside another, between two steps that are compared.
    """
    import sige
    from sige.runs.environment import cores

    inherited = allocator.environment(hardware["allocator"], dict(os.environ))
    home = str(Path(sige.__file__).parents[1])
    inherited["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [inherited.get("PYTHONPATH")])])
    if hardware.get("threads"):
        inherited |= dict.fromkeys(_THREADS, str(hardware["threads"]))
    inherited.pop("SIGE_BACKEND", None)  # the configuration has taken it up, where it was set
    if hardware.get("backend"):
        inherited["SIGE_BACKEND"] = hardware["backend"]
    for name in _WAITING:
        inherited.pop(name, None)
    if sleep:
        inherited["OMP_WAIT_POLICY"] = "passive"
    elif sys.platform == "linux" and 1 < (hardware.get("threads") or 1) == cores():
        inherited |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    return inherited


def leave_threads_free() -> None:
    """Take out of this process's environment what would bind its threads, before OpenMP is loaded: bound to one core, it would hand
    that core alone on to its workers, whose threads `environment` binds as they should be."""
    for name in _WAITING:
        os.environ.pop(name, None)


def is_busy(share: float = 0.15, seconds: float = 1.0) -> bool:
    """Whether other processes use more than this share of the machine just now.

    Threads that wait for each other by spinning are fastest on a quiet machine (9 us a parallel region, asleep 22) and
    disastrous on a busy one: with one core of two taken, convolutions took 2 to 5 times as long as with threads that
    sleep, small operators up to 300 times.
    """
    import psutil

    return psutil.cpu_percent(interval=seconds) > 100 * share


class Process:
    """One worker. What it prints on standard error goes to ``log``.

    ``sleeping`` says how its threads wait for each other: as ``hardware.wait`` says, and with ``auto`` asleep where the
    machine is busy now or was while the worker before this one ran (``disturbed``).
    """

    def __init__(self, hardware: dict, log: Path, command: list[str] | None = None, disturbed: bool = False):
        wait = hardware.get("wait", "spin")
        self.sleeping = wait == "sleep" or (wait == "auto" and (disturbed or is_busy()))
        self.may_change = wait == "auto"
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stderr:
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the worker in order.
            self.process = subprocess.Popen(
                command or COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(hardware, self.sleeping),
                start_new_session=True,
            )
        self.messages: queue.Queue = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            try:
                self.messages.put(json.loads(line))
            except ValueError:
                break  # cut off in the middle of a line: it is dying
        self.messages.put(None)

    def run(self, job: dict, timeout: float, hear) -> None:
        """Send a job, pass each message to ``hear`` until it is done. WorkerDied if it ends or ``timeout`` s pass."""
        deadline = time.monotonic() + timeout
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(*self._post_mortem()) from None
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise WorkerDied("timeout", f"not done after timeout_s={timeout:g} s") from None
            if message is None:
                raise WorkerDied(*self._post_mortem())
            hear(message)
            if message["say"] == "done":
                return

    def is_disturbed(self, seconds: float) -> bool:
        """Whether others took the processor away from a worker whose threads spin, more than twenty times a second in
        the last ``seconds``: its next job is better off in a worker whose threads sleep.
        """
        import psutil

        if self.sleeping or not self.may_change:
            return False
        try:
            switches = psutil.Process(self.process.pid).num_ctx_switches().involuntary
        except (psutil.Error, NotImplementedError):
            return False  # gone, or a system that does not tell
        before, self.switches = getattr(self, "switches", 0), switches
        return switches - before > 20 * seconds

    def _post_mortem(self) -> tuple[str, str]:
        code = self.process.wait()
        self._release()
        if code == -signal.SIGKILL:
            return "oom", f"killed by signal 9, most likely by the system for want of memory (log: {self.log})"
        said = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log.is_file() else []
        how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return (
            "error",
            f"the worker was {how}: {said[0]}" if said and code >= 0 else f"the worker was {how} (log: {self.log})",
        )

    def close(self) -> None:
        """Let the worker end by itself, and kill it if it does not."""
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
            self._release()
        except (OSError, subprocess.TimeoutExpired):
            self.kill()

    def kill(self) -> None:
        """End the worker and whatever it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._release()

    def _release(self):
        """Close our ends of the pipes, once the reader has seen the end of its own."""
        self.reader.join(timeout=10)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was left to write has nobody to read it
                pipe.close()
