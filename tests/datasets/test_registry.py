"""Edits by name: every listed one has an owner, an unknown one is answered with what exists."""

import pytest

from sige.datasets import registry
from sige.datasets.edit import UnknownEdit


def test_every_listed_edit_has_exactly_one_owner():
    owners = {
        name: [key for key, module in registry.datasets().items() if module.owns(name)] for name in registry.names()
    }
    assert all(len(found) == 1 for found in owners.values()), owners


@pytest.mark.parametrize(
    "name",
    ["church-432", "sdedit-0", "inpaint-0", "fisedit-88", "brush-1.2", "rectangle-30", "scattered-100", "brighten-30"],
)
def test_the_names_of_the_papers_edits_are_listed(name):
    assert name in registry.names()


def test_load_passes_options_to_the_data_set():
    edit = registry.load("brush-5", height=32, width=48, seed=1)
    assert (edit.size, edit.dataset, edit.source) == ((32, 48), "synthetic", "generated")


def test_an_area_between_the_listed_ones_exists_too():
    assert registry.load("brush-4.4", height=64, width=64).area == pytest.approx(0.044, rel=0.02)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(
        UnknownEdit,
        match=r"^unknown edit 'cathedral-1'; there are .*church-423, church-432, toy-mask, .*brush-<per cent of the ar",
    ):
        registry.load("cathedral-1")


def test_generated_edits_have_no_data_digest():
    assert registry.digest("brush-5", seed=1) == ""
