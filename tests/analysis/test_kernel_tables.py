"""Operators one by one: which composed way is the best, shares of the roofline, and what is left out."""

import math

import pytest

from sige.analysis import figures, kernel_tables, schema, selection
from sige.analysis.figures import style

EDITS = {"brush-1.2": 0.012, "brush-15.5": 0.155}


def rows(operator, edit, kernel_ms, composed, bound=0.0, **changes):
    """Rows of one operator: ``composed`` is way -> ms; attainable is 1 ms."""
    common = {"model": operator, "edit": edit, "edit_area": EDITS[edit], "scope": "kernel", "policy": "", **changes}
    best = min(composed, key=composed.get)
    out = []
    for method, ms in {"kernel": kernel_ms, **composed}.items():
        out.append({**common, "method": method, "metric": "latency", "value": ms, "unit": "ms"})
        share = {"value": 1 / ms, "lo": 0.9 / ms, "hi": 1.1 / ms}
        out.append({**common, "method": method, "metric": "roofline", "unit": "fraction", **share})
    ratio = composed[best] / kernel_ms
    speed = {"value": ratio, "lo": 0.9 * ratio, "hi": 1.1 * ratio, "unit": "x", "baseline": best}
    out.append({**common, "method": "kernel", "metric": "speedup", **speed})
    for metric, value, unit in (
        ("attainable", 1.0, "ms"),
        ("copy_rate", 20.0, "GB/s"),
        ("gemm_rate", 400.0, "GFLOP/s"),
    ):
        out.append({**common, "method": "kernel", "metric": metric, "value": value, "unit": unit})
    out.append({**common, "method": "kernel", "metric": "copy_bound", "value": bound, "unit": "bool"})
    return out


@pytest.fixture
def table(rows_of):
    return rows_of(
        *rows("conv_rows_256", "brush-15.5", 20.0, {"blocks": 25.0, "whole_map": 50.0}),
        *rows("conv_rows_256", "brush-1.2", 2.0, {"blocks": 3.0, "whole_map": 50.0}),
        *rows("gather_rows_256", "brush-1.2", 4.0, {"indexing": 2.0}, bound=1.0),
    )


@pytest.fixture
def frame(table):
    return kernel_tables.kernels(table)


def test_a_row_an_operator_and_edit_by_size(frame):
    assert list(zip(frame["operator"], frame["edit"], strict=True)) == [
        ("conv_rows_256", "brush-1.2"),
        ("conv_rows_256", "brush-15.5"),
        ("gather_rows_256", "brush-1.2"),
    ]


def test_the_best_composed_way_is_named_with_its_time(frame):
    assert list(frame["best composed"]) == ["blocks", "blocks", "indexing"]
    assert list(frame["its time (ms)"]) == [3.0, 25.0, 2.0]
    assert list(frame["speed-up"]) == [1.5, 1.25, 0.5]


def test_shares_of_the_roofline_of_both(frame):
    assert list(frame["roofline share"]) == [0.5, 0.05, 0.25]
    assert frame["share of the composed"].round(3).tolist() == [0.333, 0.04, 0.5]
    assert list(frame["bound by"]) == ["multiplying", "multiplying", "copying"]


def test_an_operator_with_a_red_gate_has_no_speed_up(table):
    red = table[~((table["metric"] == "speedup") & (table["model"] == "gather_rows_256"))]
    last = kernel_tables.kernels(red).iloc[-1]
    assert (math.isnan(last["speed-up"]), last["best composed"], last["time (ms)"]) == (True, "", 4.0)


@pytest.mark.parametrize("hardware", ["cpu+reference", "cpu-stock"])
def test_other_settings_are_left_out(table, hardware):
    assert kernel_tables.kernels(table.assign(hardware=hardware)).empty


def test_networks_are_left_out(table):
    assert kernel_tables.kernels(table.assign(scope="step")).empty


def test_operators_are_no_networks(table):
    assert selection.networks(selection.own_rows(table)) == []


def drawn(table, papers):
    from matplotlib import pyplot

    with style.context("sige-kernel-roofline"):
        drawing, frame = figures.all_figures()["sige-kernel-roofline"].draw(table, papers)
        words = [text.get_text() for axes in drawing.axes for text in (*axes.texts, *axes.get_yticklabels())]
        words += [text.get_text() for text in drawing.texts]
        pyplot.close(drawing)
    return frame, " ".join(words)


def test_the_figure_names_operators_what_bounds_them_and_what_they_are_against(table, papers):
    frame, words = drawn(table, papers)
    assert "gather_rows_256\nbound by copying" in words and "blocks" in words and "Edit brush-1.2" in words
    assert len(frame) == 3


def test_an_empty_table_is_said_in_the_picture(papers):
    frame, words = drawn(schema.empty_table(), papers)
    assert "not in this table" in words and frame.empty


def test_the_figure_is_written(tmp_path, table, papers):
    made = figures.write(figures.all_figures()["sige-kernel-roofline"], table, papers, tmp_path)
    assert [path.suffix for path in made] == [".svg", ".png", ".csv"]
