"""The catalogue: every item of both papers is in it, with a state that follows from its cells."""

import pytest

from sige.analysis import catalogue, verdict
from sige.analysis.targets import Cell, Item, Targets
from sige.analysis.verdict import Known

NOTHING = Known(frozenset(), frozenset())


def cell(name, value):
    fields = {"metric": "macs", "model": "m", "method": "sige", "edit": "e", "scope": "step"}
    rest = {"unit": "G", "hardware": "any", "source": "S", "confidence": "A", "kind": "published", "tolerance": 0.01}
    matches = (({**fields, "method": name}, ""),)
    return Cell(id=name, paper="p", item="i", label=name, value=value, matches=matches, **fields, **rest)


def state_of(rows_of, values, rows, **item):
    made = {"name": "Fig. 1", "kind": "figure", "version": "v", "established": True, "title": "t", "shows": "s", **item}
    papers = Targets(
        items={("p", "i"): Item("i", "p", **made)}, cells={name: cell(name, value) for name, value in values.items()}
    )
    rows = [{"model": "m", "edit": "e", "method": name, "value": value} for name, value in rows.items()]
    table = rows_of(*rows) if rows else rows_of({"model": "other"})
    return catalogue.build_catalogue(papers, verdict.judge(table, papers, NOTHING)).iloc[0]


@pytest.mark.parametrize(
    ("values", "rows", "item", "state"),
    [
        pytest.param({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, {}, "reproduced", id="all-met-or-beaten"),
        pytest.param({"a": 1.0, "b": 2.0}, {"a": 1.0}, {}, "partly (1 of 2 cells)", id="one-of-two"),
        pytest.param({"a": 1.0}, {"a": 2.0}, {}, "partly (0 of 1 cells)", id="run-and-worse"),
        pytest.param({"a": 1.0, "b": None}, {"a": 1.0}, {}, "reproduced", id="unrecovered-values-do-not-count"),
        pytest.param({"a": 1.0}, {}, {}, "not run", id="not-run"),
        pytest.param({"a": None}, {}, {}, "cannot", id="no-published-value"),
        pytest.param({}, {}, {"cannot": "a schematic"}, "cannot", id="a-schematic"),
        pytest.param({}, {}, {}, "not run", id="images-only"),
    ],
)
def test_state(rows_of, values, rows, item, state):
    assert state_of(rows_of, values, rows, **item)["state"] == state


def test_state_says_why(rows_of):
    assert state_of(rows_of, {"a": 1.0}, {})["why"] == "the model m is not in the project yet (1)"


def test_item_whose_numbers_compare_with_nothing_cannot_be_run(papers, fake_table):
    listed = catalogue.build_catalogue(papers, verdict.judge(fake_table, papers)).set_index("item")
    assert listed.loc["m1-demo", "state"] == "cannot"
    assert listed.loc["m1-demo", "why"].startswith("an interactive session")


@pytest.mark.parametrize("paper", ["sige", "fisedit"])
def test_every_item_of_a_paper_is_listed(papers, fake_table, paper):
    listed = catalogue.build_catalogue(papers, verdict.judge(fake_table, papers))
    assert set(listed[listed["paper"] == paper]["item"]) == {item for owner, item in papers.items if owner == paper}


@pytest.mark.parametrize(
    "name",
    [
        "Table 1",
        "Table 2",
        "Table 3",
        "Fig. 1",
        "Fig. 2",
        "Fig. 3",
        "Fig. 4",
        "Fig. 5",
        "Fig. 6",
        "App. Fig. 1",
        "App. Fig. 2",
        "App. Fig. 3",
    ],
)
def test_fisedit_has_each_of_its_figures_and_tables(papers, name):
    assert name in {item.name for item in papers.items.values() if item.paper == "fisedit"}


def test_figure_of_the_project_is_named(papers, fake_table):
    listed = catalogue.build_catalogue(
        papers, verdict.judge(fake_table, papers), {("sige", "efficiency"): "sige-efficiency"}
    )
    assert listed.set_index("item").loc["efficiency", "figure"] == "sige-efficiency"
