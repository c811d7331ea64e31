"""Figures: each leaves three files, draws the table and nothing else, and says in the picture what is missing."""

import functools

import pandas as pd
import pytest
from matplotlib import pyplot

from sige.analysis import figures, schema
from sige.analysis.figures import style

NAMES = ["sige-efficiency", "sige-efficiency-networks", "sige-edit-size", "sige-networks", "sige-error-macs"]
NAMES += ["sige-time-share"]


def drawn(name, table, papers):
    with style.context(name):
        drawing, frame = figures.all_figures()[name].draw(table, papers)
        words = [text.get_text() for axes in drawing.axes for text in axes.texts]
        words += [text.get_text() for text in drawing.texts]
        words += [label.get_text() for axes in drawing.axes for label in axes.get_yticklabels()]
        pyplot.close(drawing)
    return frame, " ".join(words)


def test_figures_of_the_first_report_are_registered_in_order():
    assert list(figures.all_figures())[:6] == NAMES


@pytest.fixture(scope="module")
def written(tmp_path_factory, fake_table, papers):
    """``written(name)``: the files of a figure, written once."""
    folder = tmp_path_factory.mktemp("figures")
    return functools.cache(lambda name: figures.write(figures.all_figures()[name], fake_table, papers, folder))


@pytest.mark.parametrize("name", NAMES)
def test_writes_svg_png_and_csv(written, name):
    made = written(name)
    assert [path.name for path in made] == [f"{name}.svg", f"{name}.png", f"{name}.csv"]
    assert all(path.stat().st_size > 200 for path in made)


@pytest.mark.parametrize("name", NAMES)
def test_same_table_gives_the_same_svg(tmp_path, fake_table, papers, written, name):
    again = figures.write(figures.all_figures()[name], fake_table, papers, tmp_path)
    assert again[0].read_bytes() == written(name)[0].read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_empty_table_is_said_in_the_picture(papers, name):
    _, words = drawn(name, schema.empty_table(), papers)
    assert "not in this table" in words


def test_efficiency_overlays_the_papers_bars_and_marks_them(fake_table, papers):
    frame, words = drawn("sige-efficiency", fake_table, papers)
    paper = frame[frame["series"] == "paper"]
    assert sorted(paper["value"]) == [1.96, 12.6, 12.9, 33.4, 37.5, 248.0]
    assert "paper: SIGE" in words and "Hatched bars: the paper's values." in words


def test_efficiency_shows_ratio_and_interval_of_each_method(fake_table, papers):
    frame, words = drawn("sige-efficiency", fake_table, papers)
    bar = frame[(frame["panel"] == "latency") & (frame["method"] == "incremental")].iloc[0]
    assert bar["lo"] < bar["value"] < bar["hi"]
    assert f"({bar['ratio']:.2f}×)" in words


def test_efficiency_names_the_generated_edit_that_stands_in(fake_table, papers):
    frame, words = drawn("sige-efficiency", fake_table.replace({"edit": {"church-432": "brush-1.2"}}), papers)
    assert set(frame[frame["series"] == "measured"]["edit"]) == {"brush-1.2"}
    assert "edit brush-1.2" in words


def test_red_gate_has_no_ratio(fake_table, papers):
    ours = (fake_table["method"] == "incremental") & (fake_table["edit"] == "church-432")
    red = fake_table[~(ours & fake_table["metric"].isin(["speedup", "efficiency"]))].copy()
    red.loc[ours & (red["metric"] == "gate"), "value"] = 0.0
    frame, words = drawn("sige-efficiency", red, papers)
    assert "gate red" in words
    assert frame[(frame["panel"] == "latency") & (frame["method"] == "incremental")]["ratio"].isna().all()


@pytest.mark.parametrize("hardware", ["cpu-stock", "cpu+reference"], ids=["stock-allocator", "forced-backend"])
def test_other_settings_are_not_drawn(fake_table, papers, hardware):
    frame, _ = drawn("sige-efficiency", fake_table.assign(hardware=hardware), papers)
    assert set(frame["series"]) == {"paper"}


def test_shipped_rows_are_not_drawn_as_measured(fake_table, papers):
    frame, _ = drawn("sige-efficiency", fake_table.assign(provenance="shipped"), papers)
    assert set(frame["series"]) == {"paper"}


def test_edit_size_has_the_papers_points(fake_table, papers):
    frame, _ = drawn("sige-edit-size", fake_table, papers)
    points = frame[(frame["series"] == "paper") & (frame["panel"] == "macs")]
    assert {33.4, 40.6, 50.1, 51.8, 61.3, 78.9} <= set(points["value"])
    assert points["edit_area"].between(0.011, 0.16).all()


def test_time_shares_add_up(fake_table, papers):
    frame, _ = drawn("sige-time-share", fake_table, papers)
    assert frame.groupby("method")["share"].sum().round(9).eq(1).all()


def test_error_front_has_a_point_a_method_and_edit(fake_table, papers):
    frame, _ = drawn("sige-error-macs", fake_table, papers)
    small = frame[frame["edit"] == "church-432"]
    assert set(small["method"]) == {"sige_public", "sige", "pixel", "incremental"}


def test_two_figures_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two figures are called 'sige-efficiency'"):
        figures.figure("sige-efficiency", items=[], caption="")(lambda table, papers: (None, pd.DataFrame()))


def test_colour_of_an_unknown_method_is_steady():
    assert style.colour("something_new") == style.colour("something_new") != style.colour("incremental")
