"""Edits by text alone: ``prompt-<pair>`` of ``prompt_pairs.py``, and ``prompt-sequence``, ten edits of one picture.

They have neither picture nor mask: a pipeline makes the one, and finds the other or is given one.
"""

import math
from dataclasses import dataclass

from sige.datasets import prompt_pairs
from sige.datasets.edit import UnknownEdit

DATASET = "prompts"
SEQUENCE = "prompt-sequence"
_PREFIX = "prompt-"


@dataclass(frozen=True)
class PromptEdit:
    """Prompts in the order in which one picture shows them, and word weights of the last one: (word, factor) pairs.

    ``area`` is NaN: nobody knows it before the edit.
    """

    name: str
    prompts: tuple[str, ...]
    weights: tuple = ()
    dataset: str = DATASET
    area: float = math.nan


def names() -> list[str]:
    """One edit a pair of prompts, and the row of ten."""
    return [_PREFIX + name for name in prompt_pairs.names()] + [SEQUENCE]


def describe() -> list[str]:
    """What to print in a list of everything that exists."""
    return names()


def owns(name: str) -> bool:
    """True for the names that are listed."""
    return name in names()


def digest(name: str, **options) -> str:
    """Empty: the code alone makes them."""
    return ""


def load(name: str, **options) -> PromptEdit:
    """The edit ``name``. UnknownEdit lists what exists."""
    if not owns(name):
        raise UnknownEdit(f"unknown prompt edit {name!r}; there are {', '.join(names())}.")
    if name == SEQUENCE:
        return PromptEdit(name, prompt_pairs.SEQUENCE)
    pair = prompt_pairs.load(name.removeprefix(_PREFIX))
    return PromptEdit(name, (pair.old, pair.new), pair.weights)
