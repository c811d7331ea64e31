"""Imports run one way: runs -> {analysis, datasets, sige} -> kernels. Read from the sources, nothing is executed."""

import ast

import pytest

_HARNESS = ["sige.runs", "sige.analysis", "sige.datasets"]
_HARNESS_TOOLS = ["hydra", "omegaconf", "pandas", "wandb"]
_TOP_NAMES = ["kernels", "datasets", "analysis", "runs", "conf"]  # ours are sige.kernels, sige.datasets, ...

# folder -> (what it must not import, exceptions)
_RULES = {
    "kernels": (["sige", *_HARNESS_TOOLS, *_TOP_NAMES], ["sige.kernels"]),
    "sige": ([*_HARNESS, *_HARNESS_TOOLS, *_TOP_NAMES], []),
    "analysis": (["sige.runs", *_TOP_NAMES], []),
    "datasets": (["sige.runs", *_TOP_NAMES], []),
    "runs": (_TOP_NAMES, []),
}


def _imported(tree, package):
    """(line, full module name) of every import in a module of ``package``, those inside functions included.

    ``from a import b`` counts as ``a.b``, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _within(name, tops):
    return any(name == top or name.startswith(top + ".") for top in tops)


def _violations(source, package, folder):
    forbidden, allowed = _RULES[folder]
    return [
        (line, name)
        for line, name in _imported(ast.parse(source), package)
        if _within(name, forbidden) and not _within(name, allowed)
    ]


@pytest.mark.parametrize("folder", _RULES)
def test_imports_run_one_way(checkout, folder):
    found = []
    for path in sorted((checkout / folder).rglob("*.py")):
        place = path.relative_to(checkout).parent.parts
        package = ".".join(place if folder == "sige" else ("sige", *place))
        for line, name in _violations(path.read_text(encoding="utf-8"), package, folder):
            found.append(f"{path.relative_to(checkout)}:{line} imports {name}")
    assert found == []


@pytest.mark.parametrize(
    ("folder", "package", "source", "caught"),
    [
        pytest.param("kernels", "sige.kernels.cpu", "from sige.masks import x", "sige.masks.x", id="kernels_engine"),
        pytest.param("kernels", "sige.kernels.cpu", "from sige import kernels", None, id="kernels_itself"),
        pytest.param("kernels", "sige.kernels.cpu", "from ..ops import x", None, id="kernels_relative"),
        pytest.param("kernels", "sige.kernels.cpu", "from ...masks import x", "sige.masks.x", id="kernels_out"),
        pytest.param("sige", "sige.rules", "def f():\n import pandas.core", "pandas.core", id="sige_pandas"),
        pytest.param("sige", "sige", "from . import runs", "sige.runs", id="sige_relative_runs"),
        pytest.param("sige", "sige", "from sige.kernels import ops", None, id="sige_kernels"),
        pytest.param("analysis", "sige.analysis", "from sige import runs", "sige.runs", id="analysis_runs"),
        pytest.param("analysis", "sige.analysis", "import pandas", None, id="analysis_pandas"),
        pytest.param("datasets", "sige.datasets", "import sige.runs.plan as p", "sige.runs.plan", id="datasets_runs"),
        pytest.param("runs", "sige.runs", "from analysis.stats import x", "analysis.stats.x", id="runs_bare_name"),
    ],
)
def test_scan_catches(folder, package, source, caught):
    names = [name for _, name in _violations(source, package, folder)]
    assert names == ([caught] if caught else [])
