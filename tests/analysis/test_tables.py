"""Written tables: the numbers of the table in readable form, the paper's beside."""

import math

import pandas as pd
import pytest

from sige.analysis import schema, tables, verdict


@pytest.fixture(scope="module")
def efficiency(fake_table, papers):
    return tables.efficiency_table(fake_table, papers, verdict.judge(fake_table, papers))


def test_papers_value_stands_beside_with_its_verdict(efficiency):
    row = efficiency[(efficiency["edit"] == "church-432") & (efficiency["method"] == "sige")].iloc[0]
    assert (row["paper MACs (G)"], row["verdict"]) == (33.4, "reproduced")


def test_speed_up_has_its_interval_and_baseline(efficiency):
    row = efficiency[(efficiency["edit"] == "church-432") & (efficiency["method"] == "incremental")].iloc[0]
    assert row["95 % from"] < row["speed-up"] < row["to"]
    assert row["against"] == "dense_channels_last"


def test_small_edits_come_first_and_dense_before_ours(efficiency):
    first = efficiency[efficiency["edit"] == efficiency["edit"].iloc[0]]["method"].tolist()
    assert efficiency["edit"].iloc[0] == "church-432"
    assert first == ["dense", "dense_channels_last", "sige_public", "sige", "pixel", "incremental"]


def test_state_stands_beside_the_reference_engines(fake_table, papers):
    row = tables.state_table(fake_table, papers).iloc[0]
    assert (row["reference engine (MiB)"], row["conv_input"]) == (641.5, 510.0)
    assert row["ratio"] == pytest.approx(522.5 / 641.5)


def test_time_table_is_in_percent(fake_table):
    shares = tables.time_table(fake_table).filter(like="(%)")
    assert shares.sum(axis=1).round(6).eq(100).all()


def test_both_allocator_settings_stand_side_by_side(fake_table):
    stock = fake_table.assign(hardware="cpu-stock").copy()
    stock.loc[stock["metric"] == "latency", "value"] *= 1.5
    both = tables.allocator_table(pd.concat([fake_table, stock], ignore_index=True))
    assert both["stock / kept"].round(9).eq(1.5).all()


def test_headline_names_edit_device_and_interval(fake_table):
    sentence = next(text for text in tables.headline_sentences(fake_table) if text.startswith("incremental"))
    assert "at church-432" in sentence and "made-up CPU" in sentence and "[" in sentence


def test_headline_of_a_red_gate_has_no_speed_up(fake_table):
    red = fake_table[~fake_table["metric"].isin(["speedup", "efficiency"])].copy()
    red.loc[red["metric"] == "gate", ["value", "reason"]] = [0.0, "error above its budget"]
    assert all("the correctness gate is red: error above its budget" in text for text in tables.headline_sentences(red))


def test_empty_table_gives_empty_tables(papers):
    empty = schema.empty_table()
    made = tables.all_tables(empty, papers, verdict.judge(empty, papers))
    assert all(frame.empty for _, frame in made.values())
    assert tables.headline_sentences(empty) == []


def test_writes_markdown_and_csv(tmp_path, efficiency):
    paths = tables.write("sige-efficiency", "Cost", efficiency, tmp_path)
    assert [path.name for path in paths] == ["sige-efficiency.md", "sige-efficiency.csv"]
    assert paths[0].read_text().startswith("## Cost\n\n| edit | area (%) |")


def test_markdown_escapes_bars_and_says_when_empty():
    assert "a\\|b" in tables.markdown("T", pd.DataFrame({"x": ["a|b"]}))
    assert tables.markdown("T", pd.DataFrame()) == "## T\n\nNo rows in this table.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(248.5123, "248.5", id="four-digits"),
        pytest.param(12345.6, "12,346", id="thousands"),
        pytest.param(3.0, "3", id="whole"),
        pytest.param(math.nan, "", id="nan"),
        pytest.param(math.inf, "∞", id="infinite"),
        pytest.param(None, "", id="none"),
        pytest.param("dense", "dense", id="text"),
    ],
)
def test_number_for_a_reader(value, text):
    assert tables.number(value) == text
