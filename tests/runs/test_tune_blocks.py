"""The command that measures what blocks cost: what it times, what it writes, and that the engine can search with it."""

import math

import pytest
import torch

from sige.apsc import SHAPES
from sige.block_costs import COLUMNS, CostTable
from sige.runs import tune_blocks


def test_every_shape_and_operator_is_measured_at_every_width():
    found = {(operator, shape, width) for operator, shape, width, _ in tune_blocks.cases()}
    tiles = {("conv_tiles", shape, width) for shape in SHAPES for width in tune_blocks.CHANNELS}
    rows = {(name, None, width) for name in ("conv_rows", "linear_rows", "around") for width in tune_blocks.CHANNELS}
    assert found == tiles | rows


def test_no_case_is_measured_twice():
    wanted = list(tune_blocks.cases())
    assert len(wanted) == len(set(wanted))


@pytest.mark.parametrize(
    "operator, shape, count, result",
    [
        pytest.param("conv_tiles", (4, 8), 3, (96, 16), id="tiles"),
        pytest.param("conv_rows", None, 5, (5, 16), id="rows"),
        pytest.param("linear_rows", None, 5, (5, 16), id="linear"),
        pytest.param("around", None, 5, None, id="around"),
    ],
)
def test_what_is_timed_computes_so_many(operator, shape, count, result):
    made = tune_blocks.prepared(operator, shape, 16, count, "cpu")()
    assert (None if made is None else tuple(made.shape)) == result


def test_the_least_sample_counts(monkeypatch):
    """The clock moves by 1 s at each call of a sample, but for one sample, in which it moves by a tenth."""
    clock, calls = [0.0], []

    def call():
        calls.append(None)
        clock[0] += 0.1 if len(calls) == 5 else 1.0

    monkeypatch.setattr(tune_blocks.time, "perf_counter", lambda: clock[0])
    assert tune_blocks.seconds(call, lambda: None, samples=4) == pytest.approx(0.1)


@pytest.fixture
def quick(monkeypatch):
    """The command with one narrow width and a few positions."""
    monkeypatch.setattr(tune_blocks, "measure", _few(tune_blocks.measure))
    monkeypatch.setattr(tune_blocks, "_TIDY_S", 0.0)


def _few(measure):
    return lambda device, samples, say: measure(device, samples, (8,), (4, 16), say)


def test_the_command_writes_a_table_that_the_engine_reads(quick, tmp_path, capsys):
    target = tmp_path / "costs.csv"
    status, made = tune_blocks.main(["--samples", "1", "--output", str(target)]), CostTable.read(target)
    finite = all(math.isfinite(made.seconds("conv_tiles", shape, 8, 8, 3)) for shape in SHAPES)
    assert (status, finite, capsys.readouterr().out.endswith(f" times -> {target}\n")) == (0, True, True)


@pytest.mark.parametrize(
    "says", ["python -m sige.runs.tune_blocks", "machine: ", f"torch {torch.__version__}", "least of 1"]
)
def test_the_table_says_where_it_comes_from(quick, tmp_path, says):
    tune_blocks.main(["--samples", "1", "--output", str(tmp_path / "costs.csv")])
    assert says in " ".join(CostTable.read(tmp_path / "costs.csv").about)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    row = dict.fromkeys(COLUMNS, 1)
    with pytest.raises(tune_blocks.UserError, match="cannot be written .No such file or directory.: name another file"):
        tune_blocks.write(tmp_path / "none" / "costs.csv", [row], [])


def test_a_table_that_could_not_be_written_leaves_the_old_one(quick, tmp_path, capsys, monkeypatch):
    target = tmp_path / "costs.csv"
    target.write_text("old")
    monkeypatch.setattr(tune_blocks.Path, "replace", _refused)
    status = tune_blocks.main(["--samples", "1", "--output", str(target)])
    assert (status, target.read_text(), "cannot be written" in capsys.readouterr().err) == (1, "old", True)


def _refused(self, target):
    raise OSError(28, "No space left on device")


def test_no_samples_are_refused(capsys):
    assert (tune_blocks.main(["--samples", "0"]), capsys.readouterr().err) == (2, "--samples=0 must be at least 1\n")


def test_it_runs_with_the_allocator_of_timed_runs(monkeypatch):
    started = []
    monkeypatch.setattr(tune_blocks.os, "execve", lambda *args: started.append(args))
    monkeypatch.setattr(tune_blocks, "allocator_setting", lambda device: "retain")
    monkeypatch.setattr(tune_blocks.sys, "argv", ["tune_blocks", "--samples", "2"])
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    tune_blocks._with_retained_memory()
    (program, arguments, variables), *more = started
    expected = [program, "-m", "sige.runs.tune_blocks", "--samples", "2"]
    assert (arguments, variables["MALLOC_MMAP_MAX_"], more) == (expected, "0", [])
