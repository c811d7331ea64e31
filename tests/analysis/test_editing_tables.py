"""Tables of FISEdit's Tables 1 to 3 and of edits in a row, from a few made-up rows."""

import math

import pandas as pd
import pytest

from sige.analysis import editing_tables, figures, schema, targets


@pytest.fixture(scope="module")
def papers():
    return targets.load()


def rows(*given):
    """A results table of (experiment, model, edit, method, scope, metric, value, unit[, reason])."""
    made = []
    for experiment, model, edit, method, scope, metric, value, unit, *reason in given:
        row = {name: "" if dtype == "str" else 0 for name, (dtype, _) in schema.COLUMNS.items()}
        row |= {"run_id": "run", "status": "ok", "experiment": experiment, "model": model, "edit": edit}
        row |= {"method": method, "scope": scope, "metric": metric, "value": value, "unit": unit, "hardware": "cpu"}
        row |= {"device": "a cpu", "provenance": "measured", "edit_area": 0.05, "lo": math.nan, "hi": math.nan}
        row |= {"reason": reason[0] if reason else "", "started": "2026-01-01T00:00:00+00:00", "dtype": "float32"}
        made.append(row)
    return schema.validate(pd.DataFrame(made)) if made else schema.empty_table()


def step(method, metric, value, experiment="fisedit_table1", model="sd21_unet"):
    return experiment, model, "fisedit-88", method, "step", metric, value, "G"


def whole(method, metric, value, edit="fisedit-88", model="sd21_pipeline"):
    return "fisedit_table3", model, edit, method, "edit", metric, value, "G"


def test_the_ablation_stands_beside_the_papers_rates(papers):
    table = rows(step("dense", "macs", 2000.0), step("fisedit_apsc_attn", "macs", 200.0))
    row = editing_tables.ablation(table, papers).set_index("method").loc["fisedit_apsc_attn"]
    assert (row["fewer"], row["paper (it/s)"], row["paper: faster"]) == (10, 8.13, 4.4)


def test_times_of_the_ablation_are_against_unfused_attention(papers):
    table = rows(step("dense_unfused_attention", "latency", 900.0), step("dense", "latency", 300.0))
    frame = editing_tables.ablation(table, papers).set_index("method")
    assert frame.loc["dense", "faster than the baseline"] == 3


def test_a_time_is_compared_within_its_own_run(papers):
    table = rows(
        step("dense_unfused_attention", "latency", 900.0),
        step("fisedit_conv", "latency", 300.0),
        step("dense_unfused_attention", "latency", 800.0),
        step("incremental", "latency", 100.0),
    )
    table["run_id"] = ["one", "one", "other", "other"]
    frame = editing_tables.ablation(table, papers).set_index("method")
    assert list(frame["faster than the baseline"].loc[["fisedit_conv", "incremental"]]) == [3, 8]


def test_the_narrow_network_has_no_printed_numbers(papers):
    frame = editing_tables.ablation(rows(step("dense", "macs", 50.0, model="sd21_narrow")), papers)
    assert frame["paper (it/s)"].isna().all()


def test_remembered_bytes_are_in_the_papers_unit(papers):
    table = rows(step("dense", "state_bytes.all_activations", 1000.0, "fisedit_table2"))
    row = editing_tables.transfer(table, papers).iloc[0]
    assert row["remembered (MB)"] == pytest.approx(1048.576) and row["paper (MB)"] == 4192


def test_whole_edits_are_compared_with_the_plain_pipeline(papers):
    table = rows(whole("sdtp", "edit_macs_per_step", 2000.0), whole("diffedit", "edit_macs_per_step", 4000.0))
    row = editing_tables.methods(table, papers).set_index("method").loc["diffedit"]
    assert (row["fewer"], row["paper (G)"]) == (0.5, 3041)


def test_a_method_that_no_size_changes_has_one_row(papers):
    table = rows(
        *(
            whole(method, "edit_seconds", 1.0, edit, "small_text_to_image")
            for edit in ("fisedit-88", "fisedit-12")
            for method in ("sdtp", "fisedit_session")
        )
    )
    assert sorted(editing_tables.methods(table, papers)["method"]) == ["fisedit_session", "fisedit_session", "sdtp"]


def test_edits_in_a_row_are_numbered():
    given = [("sige_sequential", "small", "prompt-sequence", "ours", "loop", f"drift.{k}", k / 10, "1") for k in (1, 2)]
    frame = editing_tables.sequence(rows(*given))
    assert list(zip(frame["edit"], frame["drift"], strict=True)) == [(1, 0.1), (2, 0.2)]


@pytest.mark.parametrize("name", ["fisedit-latent-difference", "fisedit-whole-edits", "sige-sequential"])
def test_figures_without_rows_say_what_is_missing(tmp_path, papers, name):
    made = figures.write(figures.all_figures()[name], schema.empty_table(), papers, tmp_path)
    assert all(path.stat().st_size > 100 for path in made if path.suffix != ".csv")


def test_the_map_in_a_row_is_drawn(tmp_path, papers):
    given = [
        (
            "fisedit_fig3",
            "small",
            "prompt-hat",
            "mask_search",
            "loop",
            "latent_difference.1",
            0.5,
            "1",
            "map 2x2: 0f0f",
        ),
        ("fisedit_fig3", "small", "prompt-hat", "mask_search", "loop", "latent_distance.1", 0.1, "1"),
        ("fisedit_fig3", "small", "prompt-hat", "mask_search", "loop", "latent_distance.2", 0.2, "1"),
    ]
    drawing, frame = figures.all_figures()["fisedit-latent-difference"].draw(rows(*given), papers)
    images = [image for part in drawing.subfigs for axes in part.axes for image in axes.images]
    assert [image.get_array().tolist() for image in images] == [[[0, 15], [0, 15]]] and len(frame) == 3
