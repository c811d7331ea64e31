"""Where the project's own files are: in a checkout, in an editable install and in a wheel."""

import functools
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# A line of our pyproject.toml. Another project's file in the same place (some packages drop theirs into site-packages)
# must not be taken for ours.
_MARK = 'name = "sige-incremental"'


@functools.cache
def project_root():
    """The checkout's root as a Path, or None where the package was installed from a wheel."""
    try:
        found = _MARK in (_PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        found = False
    return _PACKAGE.parent if found else None


def conf_dir():
    """The folder of configuration groups (``model/``, ``method/``, ``paper/``, ...) as a Path.

    FileNotFoundError if the installation lacks it.
    """
    folder = (project_root() or _PACKAGE) / "conf"
    if not folder.is_dir():
        raise FileNotFoundError(f"configuration folder {folder} is missing: reinstall the package or restore it")
    return folder
