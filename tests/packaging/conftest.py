"""The project as its users meet it: a checkout, an editable install and a wheel, each seen from a fresh interpreter."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("sige", "kernels", "datasets", "analysis", "runs", "conf")
_BUILD_FILES = ("pyproject.toml", "setup.py", "LICENSE", "README.md")


@pytest.fixture(scope="session")
def checkout():
    """The root of this checkout."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def fresh_python():
    """``run(code, cwd, path=(), site=True) -> stdout`` in a new interpreter that sees ``path`` first.

    ``site=False`` hides everything that is installed, our own editable install included.
    """

    def run(code, cwd, path=(), site=True):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *([] if site else ["-S"]), "-c", code]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """A folder with packages of other people's, named as two of our folders are."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("kernels", "datasets"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"STUB = 'their {name}'\n")
    return folder


@pytest.fixture(scope="session")
def copied_checkout(checkout, tmp_path_factory):
    """A copy of the sources: building in the checkout itself would leave ``build`` and ``*.egg-info`` there."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in _BUILD_FILES:
        if (checkout / name).exists():
            shutil.copy(checkout / name, copy)
    for name in FOLDERS:
        if (checkout / name).exists():
            shutil.copytree(checkout / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _build(hook, source, target):
    """Call a build hook (PEP 517, PEP 660) as pip does, but without isolation or network, and unpack what it makes."""
    code = f"import setuptools.build_meta as backend; backend.{hook}({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    site_packages = target / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    return site_packages


@pytest.fixture(scope="session")
def wheel(copied_checkout, tmp_path_factory):
    """An unpacked wheel."""
    return _build("build_wheel", copied_checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def editable(copied_checkout, tmp_path_factory):
    """An unpacked editable install of ``copied_checkout``; ``site.addsitedir`` makes Python read its ``.pth``."""
    return _build("build_editable", copied_checkout, tmp_path_factory.mktemp("editable"))
