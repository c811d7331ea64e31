"""What a worker process is started with: threads, allocator, and how its threads wait for each other."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from sige.runs import allocator, process
from sige.runs.process import Process

CPU = {"name": "cpu", "device": "cpu", "threads": 3, "allocator": "retain", "wait": "auto"}


def start(tmp_path, wait, **options):
    """A worker that ends at once."""
    worker = Process({**CPU, "wait": wait}, tmp_path / "log", [sys.executable, "-c", ""], **options)
    worker.close()
    return worker


def test_threads_are_set_for_every_library():
    environment = process.environment(CPU)
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_the_allocators_setting_is_in_the_environment():
    assert process.environment(CPU).items() >= allocator.RETAIN.items()
    assert not process.environment({**CPU, "allocator": "stock"}).keys() & allocator.RETAIN.keys()


@pytest.mark.parametrize("backend", [pytest.param("reference", id="forced"), pytest.param(None, id="none")])
def test_the_kernel_backend_is_the_configurations(monkeypatch, backend):
    monkeypatch.setenv("SIGE_BACKEND", "mps")
    assert process.environment({**CPU, "backend": backend}).get("SIGE_BACKEND") == backend


@pytest.mark.parametrize(
    "sleep, expected", [pytest.param(True, "passive", id="sleep"), pytest.param(False, None, id="spin")]
)
def test_how_threads_wait_is_in_the_environment(monkeypatch, sleep, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert process.environment(CPU, sleep).get("OMP_WAIT_POLICY") == expected


@pytest.mark.parametrize(
    "sleep, cores, system, bound",
    [
        pytest.param(False, 3, "linux", True, id="all-cores"),
        pytest.param(False, 8, "linux", False, id="some-cores"),
        pytest.param(True, 3, "linux", False, id="asleep"),
        pytest.param(False, 3, "darwin", False, id="system-without-binding"),
    ],
)
def test_spinning_threads_that_take_all_cores_are_bound_to_them(monkeypatch, sleep, cores, system, bound):
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setattr("sige.runs.environment.cores", lambda: cores)
    monkeypatch.setattr(sys, "platform", system)
    told = process.environment(CPU, sleep)
    assert (told.get("OMP_PROC_BIND"), told.get("OMP_PLACES")) == (("true", "cores") if bound else (None, None))


BOUND = """
import os
before = os.sched_getaffinity(0)
{}
import torch
torch.ones(1 << 20).sum()
print(len(os.sched_getaffinity(0)) == len(before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are bound on Linux alone")
def test_a_parent_whose_threads_are_bound_leaves_its_workers_all_cores(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("OMP_PLACES", "cores")
    free = "from sige.runs.process import leave_threads_free; leave_threads_free()"
    done = subprocess.run([sys.executable, "-c", BOUND.format(free)], capture_output=True, text=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    "wait, busy, disturbed, sleeping",
    [
        pytest.param("auto", False, False, False, id="quiet"),
        pytest.param("auto", True, False, True, id="busy"),
        pytest.param("auto", False, True, True, id="disturbed-before"),
        pytest.param("spin", True, True, False, id="told-to-spin"),
        pytest.param("sleep", False, False, True, id="told-to-sleep"),
    ],
)
def test_threads_sleep_on_a_busy_machine(tmp_path, monkeypatch, wait, busy, disturbed, sleeping):
    monkeypatch.setattr(process, "is_busy", lambda: busy)
    assert start(tmp_path, wait, disturbed=disturbed).sleeping == sleeping


@pytest.mark.parametrize(
    "load, busy", [pytest.param(3.0, False, id="quiet"), pytest.param(50.0, True, id="one-core-of-two-taken")]
)
def test_a_machine_is_busy_where_others_take_a_share_of_it(monkeypatch, load, busy):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: load)
    assert process.is_busy() == busy


@pytest.mark.parametrize(
    "switches, disturbed", [pytest.param(10, False, id="left-alone"), pytest.param(500, True, id="interrupted-often")]
)
def test_a_worker_is_disturbed_where_others_take_the_processor_away(tmp_path, monkeypatch, switches, disturbed):
    monkeypatch.setattr(process, "is_busy", lambda: False)
    counted = SimpleNamespace(num_ctx_switches=lambda: SimpleNamespace(involuntary=switches))
    monkeypatch.setattr("psutil.Process", lambda pid: counted)
    assert start(tmp_path, "auto").is_disturbed(seconds=2.0) == disturbed


def test_threads_that_sleep_are_not_disturbed(tmp_path):
    assert not start(tmp_path, "sleep").is_disturbed(seconds=2.0)
