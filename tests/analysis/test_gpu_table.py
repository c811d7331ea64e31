"""The table of a GPU's times: every network, size and method has its place, whether it was run or not."""

import math

import pandas as pd
import pytest

from sige.analysis import gpu_table, schema, tables

EDITS = {"rectangle-1.2": 0.012, "rectangle-5": 0.05, "labels-1.2": 0.012}


def row(model, edit, method, ms, **changes):
    common = {
        "metric": "latency",
        "unit": "ms",
        "scope": "step",
        "hardware": "cuda",
        "device": "NVIDIA H200",
        "experiment": "gpu",
    }
    return {**common, "model": model, "edit": edit, "edit_area": EDITS[edit], "method": method, "value": ms, **changes}


@pytest.fixture
def table(rows_of):
    return rows_of(
        row("ddpm_church256", "rectangle-1.2", "dense", 20.0),
        row("ddpm_church256", "rectangle-1.2", "dense_graphs", 4.0, dtype="bfloat16"),
        row("ddpm_church256", "rectangle-1.2", "incremental_graphs", 0.5, dtype="bfloat16"),
        row("ddpm_church256", "rectangle-5", "dense", 21.0),
        row("gaugan_cityscapes", "labels-1.2", "sige", 3.0),
        row("ddpm_church256", "rectangle-1.2", "incremental", 111.0, hardware="cpu", device="a CPU"),
        row("ddpm_church256", "rectangle-1.2", "sige", 9.0, hardware="cuda+boxes"),
        row("ddpm_church256", "rectangle-1.2", "incremental_bf16", 7.0, provenance="shipped"),
    )


def line(table, network, size):
    frame = gpu_table.gpu(table)
    return frame[(frame["network"] == network) & (frame["edit (%)"] == size)].iloc[0]


def test_without_a_gpu_every_place_says_so(table):
    frame = gpu_table.gpu(table[table["hardware"] == "cpu"])
    times = frame[[f"{method} (ms)" for method in gpu_table.METHODS]]
    assert (len(frame), (times == gpu_table.NOT_RUN).all(axis=None)) == (25, True)


def test_where_nothing_was_measured_it_is_empty():
    assert gpu_table.gpu(schema.empty_table()).empty


def test_what_was_measured_on_a_gpu_stands_in_its_place(table):
    found = line(table, "ddpm_church256", 1.2)
    measured = {
        method: found[f"{method} (ms)"] for method in gpu_table.METHODS if found[f"{method} (ms)"] != gpu_table.NOT_RUN
    }
    assert measured == {"dense": 20.0, "dense_graphs": 4.0, "incremental_graphs": 0.5}


def test_the_largest_speed_up_of_ours_stands_with_its_interval_and_baseline(rows_of, table):
    paired = {"metric": "speedup", "unit": "x", "baseline": "dense_graphs"}
    more = rows_of(
        row("ddpm_church256", "rectangle-1.2", "incremental_bf16", 2.0, **paired, lo=1.9, hi=2.1),
        row("ddpm_church256", "rectangle-1.2", "incremental_graphs", 8.0, **paired, lo=7.5, hi=8.5),
        row("ddpm_church256", "rectangle-1.2", "sige", 9.0, **paired, lo=8.9, hi=9.1),
    )
    found = line(pd.concat([table, more], ignore_index=True), "ddpm_church256", 1.2)
    shown = [found[column] for column in ("best of ours", "against", "speed-up", "95 % from", "to")]
    assert shown == ["incremental_graphs", "dense_graphs", 8.0, 7.5, 8.5]


def test_without_a_speed_up_none_is_made_of_the_times(table):
    found = line(table, "ddpm_church256", 1.2)
    assert (found["best of ours"], math.isnan(found["speed-up"])) == ("", True)


def test_label_maps_have_edits_of_their_own(table):
    assert line(table, "gaugan_cityscapes", 1.2)["sige (ms)"] == 3


@pytest.mark.parametrize(
    "network, size, aim", [("ddpm_church256", 1.2, 0.6), ("sd21_unet_b1", 1.2, 1.5), ("sd_vae_decoder_512", 5, 0.4)]
)
def test_aims(table, network, size, aim):
    assert line(table, network, size)["aim (ms)"] == aim


def test_it_is_among_the_tables(table):
    text = tables.markdown("On a GPU", gpu_table.gpu(table))
    assert "| ddpm_church256 | 1.2 | 20 | not run here |" in text


@pytest.mark.parametrize("part", ["church", "gaugan", "sd_unet", "sd21", "sd_decoder"])
def test_the_experiment_measures_what_the_table_shows(part):
    import hydra
    from omegaconf import OmegaConf

    from sige.paths import conf_dir
    from sige.runs import app

    app.register_edits()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("config", [f"experiment=gpu/{part}"]), resolve=True)
    sizes = sorted(float(edit["name"].partition("-")[2]) for edit in config["edit"].values())
    assert config["model"]["name"] in gpu_table.AIMS
    assert {*config["baseline"], *config["method"]} == set(gpu_table.METHODS)
    assert (sizes, config["hardware"]["device"]) == (list(gpu_table.SIZES), "cuda")
