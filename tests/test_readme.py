"""What the README says runs: its engine example, the files it names, the experiments and policies it names."""

import re
import warnings
from pathlib import Path

import pytest

import sige

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
FILES = sorted(set(re.findall(r"`((?:analysis|conf|datasets|kernels|runs|sige|tests)/[\w./-]+)`", TEXT)))


def test_engine_example_runs():
    scope = {}
    block = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(block, scope)
    effect = scope["effect"]
    assert (0 < effect.macs < effect.dense_macs, effect.fallbacks) == (True, [])


@pytest.mark.parametrize("name", FILES)
def test_named_file_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"experiment=(\w+)", TEXT))))
def test_named_experiment_exists(name):
    assert (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()


@pytest.mark.parametrize("name", list(sige.POLICIES))
def test_every_policy_is_explained(name):
    assert f"| `{name}` |" in TEXT
