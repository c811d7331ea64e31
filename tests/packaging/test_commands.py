"""The Makefile and the CI entry."""

import os
import re
import subprocess
import sys

import pytest

_TARGETS = ["help", "setup", "test", "reproduce", "sweep", "report", "bench", "metal", "lint", "clean"]
_NEEDS_PYTHON = [name for name in _TARGETS if name not in ("help", "clean")]


# Makes make look for no interpreter, which takes most of a dry run's time.
_PYTHON = f"PYTHON={sys.executable}"


def _make(checkout, *arguments):
    """Run make as a user would: not as the child of the make that may be running the tests."""
    outer = ("MAKE", "MFLAGS", "VENV", "ARGS", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [pytest.param([], id="default"), pytest.param(["help"], id="help")])
@pytest.mark.parametrize("target", _TARGETS)
def test_help_explains(checkout, target, arguments):
    assert re.search(rf"^  {target} +\S.{{10,}}$", _make(checkout, *arguments).stdout, re.MULTILINE)


@pytest.mark.parametrize("target", _NEEDS_PYTHON)
def test_target_sets_up_first(checkout, tmp_path, target):
    """A dry run in a place without an environment begins by making one."""
    planned = _make(checkout, "--dry-run", target, _PYTHON, f"VENV={tmp_path}/venv").stdout
    assert f"-m venv {tmp_path}/venv" in planned


@pytest.mark.parametrize(
    ("target", "command"),
    [
        pytest.param("test", "python -m pytest -q -n logical --maxprocesses 4 --dist loadfile extra", id="test"),
        pytest.param("reproduce", "python -m sige.runs experiment=reproduce extra", id="reproduce"),
        pytest.param("sweep", "python -m sige.runs -m experiment=sweep extra", id="sweep"),
        pytest.param("report", "python -m sige.analysis.report extra", id="report"),
        pytest.param("bench", "python -m sige.runs experiment=bench extra", id="bench"),
        pytest.param("metal", "python -m sige.kernels.mps.check extra", id="metal"),
    ],
)
def test_target_runs_its_command(checkout, tmp_path, target, command):
    planned = _make(checkout, "--dry-run", target, _PYTHON, f"VENV={tmp_path}/venv", "ARGS=extra").stdout
    assert planned.splitlines()[-1].removeprefix("OMP_NUM_THREADS=1 ") == f"{tmp_path}/venv/bin/{command}"


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "setup.py"])
def test_environment_is_made_again_when_its_inputs_change(checkout, tmp_path, changed):
    stamp = tmp_path / "installed.stamp"
    stamp.touch()
    planned = _make(checkout, "--dry-run", "setup", _PYTHON, f"VENV={tmp_path}", f"--what-if={changed}").stdout
    assert "-m pip install" in planned


def test_environment_that_is_up_to_date_is_kept(checkout, tmp_path):
    (tmp_path / "installed.stamp").touch()
    assert "-m pip install" not in _make(checkout, "--dry-run", "setup", f"VENV={tmp_path}").stdout


def test_old_python_is_refused_in_one_sentence(checkout, tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.6" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = _make(checkout, "setup", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    said = f"Python 3.11 or newer is needed, but {old} is Python 3.9.6: make PYTHON=/path/to/python3.12 setup"
    assert done.returncode != 0 and done.stderr.splitlines()[0] == said


def test_failed_installation_leaves_no_stamp(checkout, tmp_path):
    """A stand-in Python whose pip fails: the log's end is shown, and the next make tries again."""
    bad = tmp_path / "python"
    bad.write_text(
        '#!/bin/sh\ncase "$*" in\n  "-c "*) exit 0;;\n  --version) echo "Python 3.12.0";;\n'
        '  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;\n'
        '  *) echo "ERROR: no such package"; exit 1;;\nesac\n'
    )
    bad.chmod(0o755)
    done = _make(checkout, "setup", f"PYTHON={bad}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "ERROR: no such package" in done.stderr and "Installing failed" in done.stderr
    assert not (tmp_path / "venv" / "installed.stamp").exists()


def test_ci_runs_the_tests(checkout):
    lines = (checkout / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1] == "set -e" and lines[-1] == "make test"


def test_ci_is_executable(checkout):
    assert os.access(checkout / ".ci" / "run", os.X_OK)


def test_constraints_pin_what_is_required(checkout):
    """Every dependency has a pin, and no pin carries the tag of one machine's build."""
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in wanted}
    pins = [line for line in (checkout / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    assert names - pinned == set()
    assert not [line for line in pins if "+" in line]
