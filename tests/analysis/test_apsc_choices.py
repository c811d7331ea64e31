"""The figure of adaptive blocks: drawn from the rows of the study, shipped or measured here, and nothing else."""

import pytest
from matplotlib import pyplot

from sige.analysis import figures, results, schema
from sige.analysis.figures import style

NAME = "fisedit-apsc"


def row(metric, value, method="measured_whole", **changes):
    fields = {
        "experiment": "fisedit_blocks",
        "model": "sd21_unet",
        "scope": "layer",
        "provenance": "shipped",
        "n": 2994,
    }
    return {**fields, "metric": metric, "value": value, "method": method, **changes}


ROWS = [
    row("block_share.96.2x8", 70.0),
    row("block_share.96.4x4", 30.0),
    row("block_share.12.4x4", 100.0, "gathered"),
    row("block_cost.96.4x4", 0.8),
    row("block_ms.96", 1500.0),
    row("block_ms.all", 4000.0, "printed"),
    row("block_ms.all", 3000.0),
]


def drawn(table):
    with style.context(NAME):
        drawing, frame = figures.all_figures()[NAME].draw(table, None)
        words = [text.get_text() for axes in drawing.axes for text in axes.texts] + [
            t.get_text() for t in drawing.texts
        ]
        pyplot.close(drawing)
    return frame, " ".join(words)


def test_every_number_drawn_is_in_the_frame(rows_of):
    frame, words = drawn(rows_of(*ROWS))
    shares = frame[frame["panel"] == "share"]
    assert sorted(shares["value"]) == [30.0, 70.0, 100.0] and {"70", "30", "100"} <= set(words.split())


def test_bars_are_seconds_of_all_levels_and_their_share_of_the_first(rows_of):
    _, words = drawn(rows_of(*ROWS))
    assert "4 s (1.00)" in words and "3 s (0.75)" in words


def test_rows_measured_here_take_the_place_of_shipped_ones(rows_of):
    own = [row("block_share.96.8x8", 55.0, provenance="measured")]
    frame, words = drawn(rows_of(*ROWS, *own))
    assert (frame["value"].tolist(), "measured here" in words) == ([55.0], True)


def test_rows_of_other_experiments_are_left_out(rows_of):
    frame, _ = drawn(rows_of(row("block_share.96.8x8", 55.0, experiment="other")))
    assert frame.empty


def test_an_empty_table_is_said_in_the_picture():
    assert "not in this table" in drawn(schema.empty_table())[1]


def test_it_writes_its_three_files(tmp_path, rows_of):
    made = figures.write(figures.all_figures()[NAME], rows_of(*ROWS), None, tmp_path)
    assert [path.name for path in made] == [f"{NAME}.svg", f"{NAME}.png", f"{NAME}.csv"]


# -- the rows that ship --


@pytest.fixture(scope="module")
def shipped():
    rows = results.shipped_rows()
    return rows[rows["experiment"] == "fisedit_blocks"].set_index(["method", "metric"])["value"]


@pytest.mark.parametrize(
    "method, shape", [("printed", "2x2"), ("printed_without_2", "4x4"), ("multiplications", "2x2")]
)
@pytest.mark.parametrize("level", [96, 48, 24, 12])
def test_formulas_choose_one_shape_for_all_masks(shipped, method, shape, level):
    assert shipped[method, f"block_share.{level}.{shape}"] == 100


@pytest.mark.parametrize("level", [96, 48, 24, 12])
@pytest.mark.parametrize("method", ["gathered", "measured_whole", "measured"])
def test_shares_of_a_level_are_all_of_its_masks(shipped, method, level):
    shares = shipped[method].filter(like=f"block_share.{level}.")
    assert shares.sum() == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("level, fixed", [(96, "8x8"), (96, "4x4"), (96, "2x2"), (48, "8x8"), (24, "4x4"), (12, "2x2")])
@pytest.mark.parametrize("method", ["gathered", "measured_whole", "measured"])
def test_a_choice_costs_at_most_what_a_fixed_shape_does(shipped, method, level, fixed):
    assert shipped[method, f"block_cost.{level}.{fixed}"] <= 1


@pytest.mark.parametrize("shape, share", [("8x8", 29), ("4x4", 20)])
def test_gathered_area_chooses_as_counted_for_this_project_before(shipped, shape, share):
    """29 % and 20 % of the masks at 96x96, and 24 % for 4x8 and 8x4 together."""
    assert shipped["gathered", f"block_share.96.{shape}"] == pytest.approx(share, abs=1)
