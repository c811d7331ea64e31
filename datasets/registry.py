"""Find an edit by name: every module of this folder that defines a ``DATASET`` is a data set.

A new data set is one file beside this one with

    DATASET = "mine"                          # its name, as in conf/dataset/mine.yaml
    def names() -> list[str]                  # the edits it lists (a family may accept more)
    def owns(name) -> bool                    # is this edit mine?
    def digest(name, **options) -> str        # short text that changes when the data change ("" if the code makes them)
    def load(name, **options) -> Edit
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from sige.datasets.edit import Edit, UnknownEdit

_HERE = Path(__file__).parent
_NOT_DATASETS = {"edit", "prompt_pairs", "registry", "scene", "shapes", "street"}


def datasets() -> dict[str, ModuleType]:
    """Name of each data set -> its module, in alphabetical order of the files."""
    found = {}
    for module in pkgutil.iter_modules([str(_HERE)]):
        if module.name not in _NOT_DATASETS:
            loaded = importlib.import_module(f"sige.datasets.{module.name}")
            found[loaded.DATASET] = loaded
    return found


def names() -> list[str]:
    """All edits that are listed by name (generated kinds also exist at any other area)."""
    return [name for module in datasets().values() for name in module.names()]


def owner(name: str) -> ModuleType:
    """The module of the data set that has the edit ``name``; UnknownEdit lists what exists otherwise."""
    for module in datasets().values():
        if module.owns(name):
            return module
    families = [text for module in datasets().values() for text in module.describe()]
    raise UnknownEdit(f"unknown edit {name!r}; there are {', '.join(families)}.")


def load(name: str, **options) -> Edit:
    """Load the edit ``name``; ``options`` are those of its data set (size and seed, folder of a sample).

    Raises UnknownEdit for a name nobody has and MissingSample for a sample that is not on this machine.
    """
    return owner(name).load(name, **options)


def digest(name: str, **options) -> str:
    """Short text that changes when the data behind the edit change; "" where the code alone makes them."""
    return owner(name).digest(name, **options)
