"""Tables and figures over all networks, from a few made-up rows."""

import math

import pytest

from sige.analysis import figures, network_tables, verdict
from sige.analysis.figures import style


def counted(model, edit, method, macs, dense=100.0, **changes):
    """Rows as a count on meta tensors leaves them."""
    common = {
        "model": model,
        "edit": edit,
        "method": method,
        "hardware": "meta",
        "run_id": f"{model}-{edit}",
        **changes,
    }
    rows = [{**common, "metric": "macs", "value": macs}]
    if method != "dense":
        rows.append({**common, "metric": "macs_ratio", "value": dense / macs, "unit": "x"})
        rows.append({**common, "metric": "fallbacks", "value": 0.0, "unit": "count"})
        rows.append({**common, "metric": "state_bytes.total", "value": 10.0, "unit": "MiB"})
    return rows


@pytest.fixture
def table(rows_of):
    rows = counted("gaugan_cityscapes", "cityscapes-pair", "dense", 281.4)
    rows += counted("gaugan_cityscapes", "cityscapes-pair", "sige", 15.3, 281.4)
    rows += counted("sd14_unet", "sdedit-0", "dense", 1850.0)
    rows += counted("sd14_unet", "sdedit-0", "sige", 224.6) + counted("sd14_unet", "sdedit-0", "incremental", 111.0)
    rows += counted("sd21_unet", "fisedit-88", "fisedit_radical", 141.0)
    times = {"model": "gan_compression", "edit": "rectangle-5", "edit_area": 0.05, "run_id": "timed"}
    for method, speedup in (("sige", 3.0), ("incremental", 4.0)):
        rows += counted("gan_compression", "rectangle-5", method, 7.0, 31.2, edit_area=0.05)
        rows.append({**times, "method": method, "metric": "latency", "value": 100 / speedup, "unit": "ms"})
        rows.append({**times, "method": method, "metric": "speedup", "value": speedup, "unit": "x"})
        rows.append({**times, "method": method, "metric": "efficiency", "value": speedup / 5, "unit": "x"})
    shipped = {"model": "gan_compression", "edit": "rectangle-5", "method": "reference_engine", "provenance": "shipped"}
    rows += [{**shipped, "metric": name, "value": value} for name, value in (("speedup", 2.99), ("macs_ratio", 4.32))]
    return rows_of(*rows)


@pytest.fixture
def verdicts(table, papers):
    return verdict.judge(table, papers)


def row_of(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_counts_stand_beside_both_kinds_of_published_numbers(table, papers, verdicts):
    row = row_of(network_tables.counts_table(table, papers, verdicts), network="gaugan_cityscapes", method="sige")
    assert (row["MACs (G)"], row["paper (G)"], row["released code (G)"]) == (15.3, 15.3, 15.29)
    assert row["verdict"] == "reproduced"


def test_a_dense_network_has_one_row(table, papers, verdicts):
    frame = network_tables.counts_table(table, papers, verdicts)
    row = row_of(frame, network="sd14_unet", method="dense")
    assert (row["edit"], row["released code (G)"], row["verdict"]) == ("", 1848.5, "reproduced")


def test_networks_stand_in_the_papers_order(table, papers, verdicts):
    names = list(dict.fromkeys(network_tables.counts_table(table, papers, verdicts)["network"]))
    assert names == ["gaugan_cityscapes", "gan_compression", "sd14_unet", "sd21_unet"]


def test_stable_diffusion_table_has_the_printed_rows(table, papers):
    frame = network_tables.stable_diffusion_table(table, papers)
    assert list(frame["task"]) == ["original", "inpainting", "sdedit-0", "sdedit-1"]
    row = row_of(frame, task="sdedit-0")
    assert (row["U-Net, printed (G)"], row["U-Net, here (G)"], row["U-Net, ours (G)"]) == (224.9, 224.6, 111.0)


def test_fisedit_table_shows_every_setting_beside_the_printed_number(table, papers, verdicts):
    row = row_of(network_tables.fisedit_table(table, papers, verdicts), row="fisedit-5")
    assert (row["printed (G)"], row["all levels, active K/V (G)"]) == (386, 141.0)
    assert math.isnan(row["24/48, all K/V (G)"]) and row["verdict"] == "ambiguous"


def test_times_stand_beside_the_reference_engine(table):
    row = row_of(network_tables.times_table(table), network="gan_compression", method="sige")
    assert (row["speed-up"], row["SIGE's engine: speed-up"]) == (3.0, 2.99)
    assert row["efficiency of it"] == pytest.approx(2.99 / 4.32)


@pytest.mark.parametrize("name", ["stable_diffusion_table", "times_table"])
def test_an_empty_table_gives_no_rows(rows_of, papers, name):
    arguments = [rows_of(), papers] if name != "times_table" else [rows_of()]
    assert getattr(network_tables, name)(*arguments).empty


def drawn(name, table, papers):
    from matplotlib import pyplot

    with style.context(name):
        drawing, frame = figures.all_figures()[name].draw(table, papers)
        titles = [axes.get_title(loc="left") for axes in drawing.axes]
        pyplot.close(drawing)
    return frame, titles


def test_the_chart_of_networks_has_measured_and_printed_bars(table, papers):
    frame, titles = drawn("sige-efficiency-networks", table, papers)
    bars = frame[(frame["network"] == "gaugan_cityscapes") & (frame["method"] == "sige")]
    assert dict(zip(bars["series"], bars["value"], strict=True)) == {"measured": 15.3, "paper": 15.3}
    assert "GauGAN (cityscapes-pair)" in titles


def test_gan_compression_saves_against_its_own_dense_model(table, papers):
    frame, _ = drawn("sige-efficiency-networks", table, papers)
    bar = row_of(frame, network="gan_compression", series="paper")
    assert bar["ratio"] == pytest.approx(31.2 / 5.59)


def test_the_chart_of_times_has_a_panel_a_network_and_the_reference_engine(table, papers):
    frame, titles = drawn("sige-networks", table, papers)
    assert {"gan_compression", "efficiency, smallest edit"} <= set(titles)
    assert dict(zip(frame["method"], frame["speedup"], strict=True)) == {
        "sige": 3.0,
        "incremental": 4.0,
        "reference_engine": 2.99,
    }
