"""When Triton's kernels serve a call, when they leave it to the reference and say so, and when asking for them is an error."""

import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch

import sige  # noqa: F401
from sige.kernels import backends, ops

pytestmark = pytest.mark.usefixtures("fresh_choice")


@pytest.fixture
def fresh_choice(monkeypatch):
    """Nothing forced, nothing remembered of what was found or said before."""
    monkeypatch.delenv("SIGE_BACKEND", raising=False)
    remembering = (backends.missing, backends._own)
    for function in remembering:
        function.cache_clear()
    monkeypatch.setattr(backends, "_declined", [])
    yield
    monkeypatch.undo()
    for function in remembering:
        function.cache_clear()


@pytest.fixture
def without_triton(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "triton" else find(name, *args)
    )


@pytest.fixture
def with_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: object())


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_nvidia_tensors_go_to_triton(with_triton):
    assert backends.active("cuda") == "triton"


def test_without_triton_nvidia_tensors_go_to_the_reference_and_that_is_said_once(without_triton, caplog):
    chosen = [backends.active("cuda") for _ in range(3)]
    reason = "cuda tensors run on the kernel backend 'reference', not 'triton': the package 'triton' is not installed"
    assert (chosen, said(caplog)) == (["reference"] * 3, [reason])


def test_without_triton_the_others_are_available(without_triton):
    assert "triton" not in backends.available() and {"reference", "cpu"} <= set(backends.available())


def test_asking_for_triton_without_its_package(without_triton):
    message = "^kernel backend 'triton' was asked for, but the package 'triton' is not installed: install it or unset SIGE_BACKEND$"
    with backends.forced("triton"), pytest.raises(RuntimeError, match=message):
        ops.gather_rows(torch.ones(3, 2), torch.tensor([0]))


def test_asking_for_triton_on_cpu_tensors_outside_the_interpreter(with_triton, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("SIGE_BACKEND", "triton")
    message = (
        "^kernel backend 'triton' serves CPU tensors only in Triton's interpreter: "
        "set TRITON_INTERPRET=1 before Python starts, or unset SIGE_BACKEND$"
    )
    with pytest.raises(RuntimeError, match=message):
        ops.gather_rows(torch.ones(3, 2), torch.tensor([0]))


def test_asking_for_triton_on_cpu_tensors_in_the_interpreter(with_triton, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with backends.forced("triton"):
        assert backends.active("cpu") == "triton"


@pytest.mark.parametrize("name, device", [("cpu", "cuda"), ("triton", "mps"), ("triton", "xpu")])
def test_asking_for_a_backend_of_another_device(with_triton, name, device):
    message = f"^kernel backend '{name}' cannot serve {device} tensors: choose 'reference' or unset SIGE_BACKEND$"
    with backends.forced(name), pytest.raises(RuntimeError, match=message):
        backends.active(device)


def test_the_interpreter_alone_chooses_nothing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.active("cpu") == "cpu"


class DecliningBackend:
    """Stands in for a backend whose functions decline everything."""

    def __init__(self, monkeypatch):
        self.calls = 0
        load = backends._load

        def decline(*args):
            self.calls += 1
            raise backends.Declined("it is tired")

        monkeypatch.setattr(backends, "_load", lambda name, op: load(name, op) if name in backends._EXACT else decline)
        monkeypatch.setattr(backends, "active", lambda device_type: "triton")
        backends._backed.cache_clear()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        backends._backed.cache_clear()


def test_a_declined_call_is_served_by_the_reference_and_said_once(monkeypatch, caplog):
    source = torch.arange(6.0).view(3, 2)
    with DecliningBackend(monkeypatch) as backend:
        rows = [ops.gather_rows(source, torch.tensor([2])) for _ in range(3)]
    message = "kernel backend 'triton' leaves gather_rows to 'reference': it is tired"
    assert ([row.tolist() for row in rows], backend.calls, said(caplog)) == ([[[4.0, 5.0]]] * 3, 3, [message])
    assert backends.declined().count(message) == 1


def test_importing_the_engine_imports_no_triton_kernel(checkout_python):
    code = (
        "import torch, sige\nfrom sige.kernels import ops\nops.gather_rows(torch.ones(3, 2), torch.tensor([0]))\n"
        "import sys\nprint(*[name for name in sys.modules if name.startswith('sige.kernels.triton')])"
    )
    assert checkout_python(code) == ""


@pytest.fixture
def checkout_python():
    """Run code in a fresh Python that finds this project and asks for no interpreter; returns what it prints."""

    def run(code):
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        kept = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "SIGE_BACKEND")}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=kept, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
