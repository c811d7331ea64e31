"""What the README says runs: its engine example, its recipe of a model, the files, experiments and policies it names."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import sige
from sige.analysis import schema

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
FILES = sorted(set(re.findall(r"`((?:analysis|conf|datasets|kernels|runs|sige|tests)/[\w./-]+)`", TEXT)))


def run(number):
    """What the README's Python example of this number leaves behind."""
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(re.findall(r"```python\n(.*?)```", TEXT, re.S)[number], scope)
    return scope


def test_engine_example_runs():
    effect = run(0)["effect"]
    assert (0 < effect.macs < effect.dense_macs, effect.fallbacks) == (True, [])


def test_pipeline_example_runs():
    again = run(1)["again"]
    assert (again.mask_source, 0 < again.macs < again.dense_macs, again.effect.fallbacks) == ("user", True, [])


@pytest.mark.parametrize("name", FILES)
def test_named_file_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"experiment=(\w+)", TEXT))))
def test_named_experiment_exists(name):
    assert (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()


@pytest.mark.parametrize("name", list(sige.POLICIES))
def test_every_policy_is_explained(name):
    assert f"| `{name}` |" in TEXT


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The README's "a model in one YAML" done as it says, in an empty folder; the table that it leaves."""
    part = TEXT[TEXT.index("### A model in one YAML") :]
    yaml = re.search(r"```yaml\n# (\S+)\n(.*?)```", part, re.S)
    command = re.search(r"\$ python -m sige\.runs (.*)", part).group(1).split()
    here = tmp_path_factory.mktemp("recipe")
    (here / yaml.group(1)).parent.mkdir(parents=True)
    (here / yaml.group(1)).write_text(yaml.group(2))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    few = ["rounds=1", "warmup=1", "aa_control=false", "hardware=cpu", "hardware.threads=1"]
    done = subprocess.run(
        [sys.executable, "-m", "sige.runs", *command, *few],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return schema.read_table(here / "results" / "runs.parquet")


def test_the_recipes_model_runs_under_every_method(recipe):
    assert set(recipe["model"]) == {"small_unet"} and set(recipe["status"]) == {"ok"}
    assert {"dense", "sige", "incremental"} <= set(recipe["method"])


def test_the_recipes_model_is_sparse_without_a_line_about_it(recipe):
    values = recipe.set_index(["method", "metric"])["value"]
    assert values["incremental", "fallbacks"] == 0
    assert values["incremental", "macs_ratio"] > 1
    assert values["incremental", "gate"] == 1
