"""Each verdict from a table of one or two made-up rows, against the papers' own numbers."""

import math
from dataclasses import replace

import pytest

from sige.analysis import verdict
from sige.analysis.verdict import Known

KNOWN = Known(models=frozenset({"ddpm_church256", "toy_conv"}), methods=frozenset({"dense", "sige", "sige_public"}))
OURS = "sige/efficiency/ddpm-ours"
GPU = {"hardware": "cuda", "device": "NVIDIA GeForce RTX 3090"}


def judged(papers, table, cell, known=KNOWN):
    one = replace(papers, cells={cell: papers.cells[cell]})
    return verdict.judge(table, one, known).iloc[0]


def fails(status, reason, **changes):
    return {"status": status, "reason": reason, "metric": "", "value": math.nan, **changes}


@pytest.mark.parametrize(
    ("cell", "row", "expected", "why"),
    [
        pytest.param(f"{OURS}/macs", {"value": 33.0}, "reproduced", "", id="reproduced-within-tolerance"),
        pytest.param(f"{OURS}/macs", {"value": 28.0}, "better", "-16.2% from", id="better-with-fewer-macs"),
        pytest.param(f"{OURS}/macs", {"value": 36.0}, "worse", "+7.8% from", id="worse-with-more-macs"),
        pytest.param(
            f"{OURS}/macs_ratio",
            {"metric": "macs_ratio", "value": 9.0, "unit": "x"},
            "better",
            "+18",
            id="better-with-more-saving",
        ),
        pytest.param(
            f"{OURS}/x_3090",
            {"metric": "speedup", "value": 2.0, "unit": "x", **GPU},
            "worse",
            "-33.3%",
            id="worse-with-less-speed-up",
        ),
        pytest.param(
            f"{OURS}/ms_3090",
            {"metric": "latency", "value": 12.9, "unit": "ms", **GPU},
            "reproduced",
            "",
            id="reproduced-on-the-papers-machine-by-its-device-name",
        ),
        pytest.param(
            f"{OURS}/x_3090",
            {"metric": "speedup", "value": 3.5, "lo": 3.1, "hi": 3.9, "unit": "x", **GPU},
            "ambiguous",
            "interval reaches into the tolerance",
            id="ambiguous-interval-reaches-tolerance",
        ),
        pytest.param(
            "sige/efficiency/ddpm-original/macs",
            {"method": "dense", "value": 300.0},
            "ambiguous",
            "neither direction is better",
            id="ambiguous-dense-macs-differ",
        ),
        pytest.param(
            "sige/edit-size/ddpm-7.19/macs",
            {"edit": "brush-7.2", "value": 51.8},
            "ambiguous",
            "the paper's own edit of this size is not available; the generated edit brush-7.2 stands in",
            id="ambiguous-generated-edit-stands-in",
        ),
        pytest.param(
            f"{OURS}/macs",
            {"edit": "brush-1.2", "value": 33.4},
            "ambiguous",
            "the sample was not at hand",
            id="ambiguous-sample-not-at-hand",
        ),
        pytest.param(
            f"{OURS}/ms_3090",
            {"metric": "latency", "value": 2600.0, "unit": "ms"},
            "not comparable",
            "measured on made-up CPU, the paper on NVIDIA GeForce RTX 3090",
            id="not-comparable-milliseconds-of-another-machine",
        ),
        pytest.param(
            f"{OURS}/x_m1cpu",
            {"metric": "speedup", "value": 6.6, "unit": "x"},
            "not comparable",
            "the paper on Apple M1 Pro",
            id="not-comparable-ratio-of-another-machine",
        ),
        pytest.param(
            "fisedit/headline/abstract/x_titan",
            {},
            "not comparable",
            "swaps the two GPUs",
            id="not-comparable-the-papers-own-fault",
        ),
        pytest.param(
            f"{OURS}/macs", {"edit": "church-423"}, "not run", "no such run in this table", id="not-run-nothing-there"
        ),
        pytest.param(
            f"{OURS}/macs",
            fails("oom", "2 GiB short"),
            "not run",
            "failed (oom): 2 GiB short",
            id="not-run-the-run-failed",
        ),
        pytest.param(
            "sige/efficiency/gaugan-ours/macs",
            {},
            "not run",
            "the model gaugan_cityscapes is not in the project yet",
            id="not-run-model-missing",
        ),
        pytest.param(
            "sige/run-edits/ddpm-threshold32-432/macs",
            {},
            "not run",
            "the method sige_public_min32 is not in the project yet",
            id="not-run-method-missing",
        ),
        pytest.param(
            "sige/run-edits/toy/blocks",
            {},
            "not run",
            "active_blocks is not measured by the project yet",
            id="not-run-metric-missing",
        ),
        pytest.param(
            "sige/edit-size-quality/ddpm-ours/fid",
            {},
            "not run",
            "needs pretrained weights and the benchmark's images",
            id="not-run-needs-weights-and-images",
        ),
        pytest.param(f"{OURS}/x_m1gpu", {}, "not run", "needs Apple M1 Pro (GPU)", id="not-run-needs-hardware"),
        pytest.param(
            f"{OURS}/x_3090",
            {"metric": "gate", "value": 0.0, "reason": "error 0.9 is above the budget 0.5", **GPU},
            "not run",
            "the correctness gate is red (error 0.9 is above the budget 0.5)",
            id="not-run-gate-red",
        ),
        pytest.param(
            "sige/ablation/scatter-fusion/ms_3090",
            {"metric": "latency", "value": 9.0, "unit": "ms", **GPU},
            "published value not available",
            "could not be recovered",
            id="published-value-not-available",
        ),
    ],
)
def test_verdict(papers, rows_of, cell, row, expected, why):
    found = judged(papers, rows_of(row), cell)
    assert (found["verdict"], why in found["why"]) == (expected, True), found["why"]


def test_every_verdict_is_tried_above():
    tried = {case.values[2] for case in test_verdict.pytestmark[0].args[1]}
    assert tried == set(verdict.VERDICTS)


def test_shipped_row_has_its_own_column_and_decides_nothing(papers, rows_of):
    found = judged(papers, rows_of({"value": 33.4, "provenance": "shipped"}), f"{OURS}/macs")
    assert (found["verdict"], found["shipped_value"]) == ("not run", 33.4)
    assert math.isnan(found["measured"])


def test_shipped_row_answers_by_its_policy(papers, rows_of):
    row = {"method": "reference_engine", "policy": "sige_public", "value": 28.1, "provenance": "shipped"}
    assert judged(papers, rows_of(row), "sige/run-edits/ddpm-public-432/macs")["shipped_value"] == 28.1


def test_row_of_a_paper_decides_nothing(papers, rows_of):
    assert judged(papers, rows_of({"value": 33.4, "provenance": "paper"}), f"{OURS}/macs")["verdict"] == "not run"


def test_ratio_of_another_machine_is_shown_beside_without_a_difference(papers, rows_of):
    found = judged(
        papers, rows_of({"metric": "speedup", "value": 6.6, "lo": 6.0, "hi": 7.0, "unit": "x"}), f"{OURS}/x_3090"
    )
    assert (found["measured"], found["lo"], found["hi"]) == (6.6, 6.0, 7.0)
    assert math.isnan(found["relative_difference"])


def test_unit_of_the_paper_is_used(papers, rows_of):
    row = {"metric": "latency", "value": 1960.0, "unit": "ms", "hardware": "cpu", "device": "Apple M1 Pro, 8 threads"}
    found = judged(papers, rows_of(row), f"{OURS}/s_m1cpu")
    assert (found["measured"], found["verdict"]) == (pytest.approx(1.96), "reproduced")


def test_newest_row_answers(papers, rows_of):
    old = {"value": 99.0, "started": "2026-01-01T00:00:00+00:00"}
    new = {"value": 33.4, "started": "2026-02-01T00:00:00+00:00"}
    assert judged(papers, rows_of(new, old), f"{OURS}/macs")["measured"] == 33.4


def test_other_precision_answers_no_time(papers, rows_of):
    row = {"metric": "latency", "value": 12.6, "unit": "ms", "dtype": "bfloat16", **GPU}
    assert judged(papers, rows_of(row), f"{OURS}/ms_3090")["verdict"] == "not run"


@pytest.mark.parametrize("hardware", ["cpu-stock", "cpu+reference"], ids=["stock-allocator", "forced-backend"])
def test_other_settings_answer_nothing(papers, rows_of, hardware):
    row = {"metric": "speedup", "value": 12.0, "unit": "x", "hardware": hardware}
    assert math.isnan(judged(papers, rows_of(row), f"{OURS}/x_3090")["measured"])


def test_dense_macs_of_any_method_answer_for_the_original(papers, rows_of):
    found = judged(papers, rows_of({"metric": "dense_macs", "value": 248.5}), "sige/efficiency/ddpm-original/macs")
    assert found["verdict"] == "reproduced"


def test_ratio_against_another_model(papers, rows_of):
    own = {"model": "gan_compression", "edit": "cityscapes-pair", "value": 5.58}
    base = {"model": "gaugan_cityscapes", "edit": "cityscapes-pair", "method": "dense", "value": 281.4}
    found = judged(papers, rows_of(own, base), "sige/edit-size/gancomp-1.18/macs_ratio")
    assert (found["measured"], found["verdict"]) == (pytest.approx(50.43, abs=0.01), "reproduced")


def test_calls_per_second_come_from_latency(papers, rows_of):
    row = {
        "model": "sd21_unet",
        "method": "dense",
        "metric": "latency",
        "value": 500.0,
        "lo": 400.0,
        "hi": 625.0,
        "unit": "ms",
    }
    found = judged(
        papers, rows_of({**row, "device": "NVIDIA TITAN RTX", "hardware": "cuda"}), "fisedit/table3/sdtp/its_titan"
    )
    assert (found["measured"], found["lo"], found["hi"]) == pytest.approx((2.0, 1.6, 2.5))


def test_edit_area_is_read_from_its_column(papers, rows_of):
    found = judged(papers, rows_of({"edit_area": 0.01202}), "sige/run-masks/church-432/area")
    assert (found["measured"], found["verdict"]) == (pytest.approx(1.202), "reproduced")


def test_counts_name_every_verdict(papers, rows_of):
    counted = verdict.counts(verdict.judge(rows_of({"value": 33.4}), papers, KNOWN))
    assert list(counted) == list(verdict.VERDICTS)
    assert sum(counted.values()) == len(papers.cells)


def test_columns_are_those_promised(papers, rows_of):
    promised = "cell paper item label published unit measured lo hi relative_difference tolerance verdict why"
    found = verdict.judge(rows_of({}), papers, KNOWN).columns
    assert set(f"{promised} source run_id shipped_value".split()) <= set(found)


def test_known_names_come_from_the_configuration(papers, rows_of):
    found = judged(papers, rows_of({"edit": "church-423"}), f"{OURS}/macs", known=None)
    assert found["why"] == "no such run in this table"


@pytest.mark.parametrize(
    ("cell", "row"),
    [
        pytest.param("sige/run-dense/ddpm/params", {"metric": "params", "unit": "M", "method": "dense"}, id="params"),
        pytest.param(
            "sige/run-state/ddpm/weight_bytes",
            {"metric": "weight_bytes", "unit": "MiB", "method": "dense"},
            id="weights, told by the dense row",
        ),
        pytest.param("sige/run-sd/sdedit-0/linear", {"metric": "macs_by_kind.linear", "edit": "sdedit-0"}, id="kind"),
        pytest.param(
            "sige/run-masks/church-432/d64", {"metric": "mask_density.64", "unit": "%", "scope": "edit"}, id="density"
        ),
        pytest.param(
            "sige/run-masks/church-432/area_raw",
            {"metric": "edit_area_raw", "unit": "%", "scope": "edit"},
            id="area before the mask was grown",
        ),
        pytest.param(
            "fisedit/engine-counts/quality-full-15/counted",
            {"method": "fisedit", "edit": "fisedit-3"},
            id="an engine's setting",
        ),
        pytest.param(
            "sige/run-state-ours/gaugan/state",
            {"metric": "state_bytes.total", "unit": "MiB", "method": "incremental", "edit": "cityscapes-pair"},
            id="remembered bytes of our own policy",
        ),
    ],
)
def test_a_count_or_an_area_is_judged(papers, rows_of, cell, row):
    """The value printed is what was measured: the row answers the cell."""
    target = papers.cells[cell]
    found = judged(papers, rows_of({"model": target.model, "value": target.value, **row}), cell)
    assert (found["verdict"], found["measured"]) == ("reproduced", target.value), found["why"]


def test_released_masks_are_the_papers_edits(papers):
    areas = {papers.cells[f"fisedit/table3/fisedit-{size}/macs"].edit for size in (5, 15, 30)}
    assert areas == {"fisedit-88", "fisedit-3", "fisedit-12"}
