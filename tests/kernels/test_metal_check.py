"""The program that a Mac's owner runs: what it compares and times, through the shim, and what it says without a GPU."""

import json
import time

import pytest
import torch

import sige  # noqa: F401
from sige.kernels import backends
from sige.kernels.mps import check, launch


@pytest.fixture(scope="module")
def compared(metal_shim):
    patch = pytest.MonkeyPatch()
    patch.setattr(launch, "compile_text", metal_shim.library)
    launch.library.cache_clear()
    yield list(check.parity("cpu"))
    patch.undo()
    launch.library.cache_clear()


@pytest.mark.parametrize("operator", list(backends.FAMILIES))
@pytest.mark.parametrize("dtype", ["float", "half", "bfloat"])
def test_every_operator_is_compared_and_right(compared, operator, dtype):
    verdicts = [row["verdict"] for row in compared if (row["operator"], row["dtype"]) == (operator, dtype)]
    assert len(verdicts) >= 1 and set(verdicts) == {"right"}


def outcome(monkeypatch, kernel):
    monkeypatch.setattr(backends, "_load", lambda name, operator: kernel if name == "mps" else torch.neg)
    return check.compare("gather_rows", (torch.ones(3, 2),), "cpu")


def test_a_wrong_result_is_called_wrong(monkeypatch):
    assert outcome(monkeypatch, lambda rows: -rows * 1.01) == {
        "verdict": "wrong",
        "error": pytest.approx(0.01, rel=1e-3),
    }


def test_a_result_that_is_not_a_number_is_called_wrong(monkeypatch):
    assert outcome(monkeypatch, lambda rows: rows * float("nan"))["verdict"] == "wrong"


def test_a_declined_call_is_reported_with_its_reason(monkeypatch):
    def decline(rows):
        raise backends.Declined("it is tired")

    assert outcome(monkeypatch, decline) == {"verdict": "declined", "why": "it is tired"}


def test_a_failure_is_reported_with_its_message(monkeypatch):
    def fail(rows):
        raise RuntimeError("program_source:3:1: error")

    expected = {"verdict": "failed", "why": "RuntimeError: program_source:3:1: error"}
    assert outcome(monkeypatch, fail) == expected


def test_timings_tell_kernel_composed_and_whole_map(shimmed, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", iter(range(10**6)).__next__)  # a second from each look to the next
    rows = list(check.timings("cpu", lambda: None, layers=((16, 16, 8),), shares=(0.05, 1.0)))
    facts = [(row["dtype"], row["active"], row["kernel_ms"], row["composed_ms"], row["whole_map_ms"]) for row in rows]
    assert facts == [(dtype, n, 1000, 1000, 1000) for dtype in ("float", "half", "bfloat") for n in (3, 64)]


def test_composed_alternative_computes_the_same(shimmed):
    source, index = check.random(64, 16, dtype=torch.float32), check.reads(8, torch.tensor([0, 9, 63]))
    weight, bias = check.random(20, 16, 3, 3, dtype=torch.float32), check.random(20, dtype=torch.float32)
    got = backends._load("mps", "conv_rows")(source, index, weight, bias, 1)
    assert torch.allclose(check._gathered(source, index, weight, bias), got, atol=1e-4)


@pytest.fixture
def apple(shimmed, monkeypatch):
    """A Mac, as far as the program can tell."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(check, "_on", lambda device, arguments: list(arguments))
    monkeypatch.setattr(check, "_chip", lambda: "Apple M9")
    monkeypatch.setattr(check, "DTYPES", (torch.float32,))


def test_results_are_written_with_the_kernels_digests(apple, tmp_path):
    status = check.main(["--quick", "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    facts = (found["machine"]["chip"], set(found["machine"]["kernels"]), found["timings"])
    assert (status, facts) == (0, ("Apple M9", set(launch.FILES), []))


def test_a_wrong_case_makes_the_program_fail(apple, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "compare", lambda *args: {"verdict": "wrong", "error": 1.0})
    status = check.main(["--quick", "--output", str(tmp_path / "found.json")])
    assert (status, capsys.readouterr().out.splitlines()[-1].split(";")[0][:5]) == (1, "0 of ")


def test_without_an_apple_gpu_one_sentence_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    status = check.main(["--output", str(tmp_path / "found.json")])
    said = capsys.readouterr().err
    assert (status, said, list(tmp_path.iterdir())) == (
        1,
        "PyTorch finds no Apple GPU here: run this on a Mac with Apple silicon\n",
        [],
    )
