"""Edits by text alone: what is listed, what one holds, what an unknown name says."""

import math

import pytest

from sige.datasets import prompt_edits, prompt_pairs, registry
from sige.datasets.edit import UnknownEdit


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in prompt_pairs.names()])
def test_every_pair_is_an_edit(name):
    pair, edit = prompt_pairs.load(name), registry.load(f"prompt-{name}")
    assert (edit.prompts, edit.weights) == ((pair.old, pair.new), pair.weights)


def test_the_sequence_is_ten_edits_of_one_picture():
    assert len(registry.load(prompt_edits.SEQUENCE).prompts) == 11


def test_nobody_knows_the_area_before_the_edit():
    assert math.isnan(registry.load("prompt-hat").area)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(UnknownEdit, match="unknown prompt edit 'prompt-horse'; there are prompt-dog-cat"):
        prompt_edits.load("prompt-horse")
