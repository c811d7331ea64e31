"""The README's table of operators is the registered schemas, and its environment variables are those that the code reads."""

import re
from pathlib import Path

import pytest
import torch

import sige  # noqa: F401
from sige.kernels import backends, ops  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "README.md").read_text().split("\n## Kernels\n")[1].split("\n## ")[0]
ROWS = {
    row[0]: row[1:]
    for row in re.findall(r"^\| `(\w+)` \| `(\(.*?)` \| ([\w, ]+) \| ([^|]+) \| ([^|]+) \|$", SECTION, re.MULTILINE)
}


def test_every_operator_has_a_row():
    assert list(ROWS) == list(backends.FAMILIES)


@pytest.mark.parametrize("name", list(backends.FAMILIES))
def test_the_schema_is_the_registered_one(name):
    assert f"sige::{name}{ROWS[name][0]}" == str(getattr(torch.ops.sige, name).default._schema)


@pytest.mark.parametrize("name", list(backends.FAMILIES))
def test_the_backends_named_have_the_operator(name):
    named = ROWS[name][1].split(", ")
    assert set(named) <= set(backends.BACKENDS)
    for backend in named:
        source = (ROOT / "kernels" / backend / f"{backends.FAMILIES[name]}.py").read_text()
        assert f"\ndef {name}(" in source


def test_every_environment_variable_that_the_project_reads_is_explained():
    sources = [path.read_text() for folder in ("kernels", "sige", "datasets") for path in (ROOT / folder).rglob("*.py")]
    read = {name for source in sources for name in re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source)}
    explained = set(re.findall(r"^\| `(\w+)(?:=1)?` \| ", SECTION.split("| environment variable |")[1], re.MULTILINE))
    assert {"SIGE_BACKEND", "SIGE_DATA"} <= read <= explained
