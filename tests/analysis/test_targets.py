"""The papers' numbers: what the files hold, and that a broken file is refused in one sentence."""

import copy
import math

import pytest
import yaml

from sige.analysis import targets
from sige.analysis.targets import TargetError

SMALL = {
    "paper": "fake",
    "title": "A made-up paper",
    "reference": "nobody",
    "sources": {"TAB": "a table"},
    "confidence": {"A": "read"},
    "protocol": "none",
    "hardware": {"box": {"name": "A box", "device": "Box"}},
    "edits": {"dot": {"area": 0.01, "available": False, "stand_ins": ["brush-1"]}},
    "columns": {
        "macs": {"metric": "macs", "unit": "G", "tolerance": 0.01},
        "ms": {"metric": "latency", "unit": "ms", "hardware": "box", "tolerance": 0.1},
    },
    "items": {
        "t1": {"name": "Table 1", "kind": "table", "version": "v1", "established": True, "title": "t", "shows": "s"}
    },
    "tables": {
        "one": {
            "of": {"item": "t1", "source": "TAB", "confidence": "A", "model": "m", "method": "sige"},
            "rows": {"first": {"edit": "dot", "values": {"macs": 7.5, "ms": None}}},
        }
    },
}


def loaded(folder, content):
    (folder / "fake.yaml").write_text(yaml.safe_dump(content))
    return targets.load(folder)


def changed(path, value):
    content = copy.deepcopy(SMALL)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_row_takes_what_it_lacks_from_its_table(tmp_path):
    cell = loaded(tmp_path, SMALL).cells["fake/one/first/macs"]
    assert (cell.model, cell.method, cell.item, cell.source) == ("m", "sige", "t1", "TAB")


def test_null_is_a_value_that_is_not_available(tmp_path):
    assert loaded(tmp_path, SMALL).cells["fake/one/first/ms"].value is None


def test_generated_edit_stands_in_with_a_reason(tmp_path):
    exact, stand_in = loaded(tmp_path, SMALL).cells["fake/one/first/macs"].matches
    assert (exact[0]["edit"], exact[1], stand_in[0]["edit"]) == ("dot", "", "brush-1")
    assert stand_in[1].startswith("the paper's own edit of this size is not available")


@pytest.mark.parametrize(
    ("printed", "half_digit"),
    [
        pytest.param(18, 0.5 / 18, id="whole"),
        pytest.param(7.5, 0.05 / 7.5, id="tenths"),
        pytest.param(5.59, 0.005 / 5.59, id="hundredths"),
    ],
)
def test_tolerance_holds_half_a_printed_digit(tmp_path, printed, half_digit):
    content = changed(["tables", "one", "rows", "first", "values", "macs"], printed)
    assert loaded(tmp_path, content).cells["fake/one/first/macs"].tolerance == pytest.approx(0.01 + half_digit)


ROW = ["tables", "one", "rows", "first"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(changed(["speed"], 1), "fake.yaml: unknown key 'speed'; allowed are", id="key-of-file"),
        pytest.param(changed(["items", "t1", "page"], 1), "item t1: unknown key 'page'", id="key-of-item"),
        pytest.param(changed(["columns", "macs", "units"], 1), "column macs: unknown key 'units'", id="key-of-column"),
        pytest.param(changed(["edits", "dot", "size"], 1), "edit dot: unknown key 'size'", id="key-of-edit"),
        pytest.param(changed(["hardware", "box", "ram"], 1), "hardware box: unknown key 'ram'", id="key-of-hardware"),
        pytest.param(changed(["tables", "one", "row"], {}), "one: unknown key 'row'", id="key-of-table"),
        pytest.param(changed([*ROW, "value"], 1), "fake/one/first: unknown key 'value'", id="key-of-row"),
        pytest.param(changed([*ROW, "values", "psnr"], 1), "column 'psnr' is not described", id="unknown-column"),
        pytest.param(
            changed([*ROW, "values", "macs"], "many"), "the value of 'macs' is 'many'; give a number", id="text-value"
        ),
        pytest.param(changed([*ROW, "edit"], "blob"), "edit 'blob' is not described", id="unknown-edit"),
        pytest.param(changed([*ROW, "source"], "HEARSAY"), "source 'HEARSAY' is not one of", id="unknown-source"),
        pytest.param(
            changed([*ROW, "confidence"], "D"), "confidence 'D' is not one of", id="recollection-is-no-number"
        ),
        pytest.param(changed([*ROW, "item"], "t9"), "item 't9' is not one of", id="unknown-item"),
        pytest.param(changed([*ROW, "kind"], "guess"), "kind 'guess' is not one of", id="unknown-kind"),
        pytest.param(
            changed(["columns", "ms", "hardware"], "bag"), "hardware 'bag' is not described", id="unknown-hardware"
        ),
        pytest.param(changed(["items", "t1", "kind"], "song"), "item t1 has kind 'song'", id="unknown-item-kind"),
        pytest.param(changed(["tables", "one", "of"], {}), "`item` is missing", id="missing-item"),
    ],
)
def test_refuses(tmp_path, content, sentence):
    with pytest.raises(TargetError, match=sentence):
        loaded(tmp_path, content)


def test_twice_the_same_key_is_refused(tmp_path):
    (tmp_path / "fake.yaml").write_text("paper: a\npaper: b\n")
    with pytest.raises(TargetError, match="fake.yaml is not readable YAML"):
        targets.load(tmp_path)


def test_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(TargetError, match="holds no \\*.yaml"):
        targets.load(tmp_path)


def test_extension_of_a_missing_file_is_refused(tmp_path):
    (tmp_path / "more.yaml").write_text("extends: fake\ntables: {}\n")
    with pytest.raises(TargetError, match="more.yaml extends 'fake'"):
        targets.load(tmp_path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("sige/teaser/ddpm-3.78/macs", 40.6),
        ("sige/teaser/gancomp-2.02/x_3090", 5.3),
        ("sige/caching/ours-9.4/macs", 50.1),
        ("sige/edit-size/ddpm-15.5/macs", 78.9),
        ("sige/edit-size/gaugan-13.5/macs", 69.8),
        ("sige/edit-size-quality/pd-ours/fid", 90.1),
        ("sige/efficiency/pd-ours/s_m1cpu", 1.55),
        ("sige/sd/inpainting/dec_ms", 48.0),
        ("sige/abstract-tpami/gaugan/x_3090", 5.6),
        ("sige/demo/conversion-3/seconds", 1.14),
        ("sige/run-edits/toy/macs_m", 57.73),
        ("sige/run-edits/pd128-paper-423/macs", 37.36),
        ("sige/run-state/ddpm/state", 641.5),
        ("sige/run-sd/inpainting/matmul", 77.7),
        ("fisedit/table1/768-apsc/its", 3.61),
        ("fisedit/table2/edit-15/transfer_a100", 72),
        ("fisedit/table3/fisedit-30/macs", 835),
        ("fisedit/table3/instruct-pix2pix/its_a100", 2.29),
        ("fisedit/text/dataset/pairs", 454445),
    ],
)
def test_numbers_stand_where_the_papers_print_them(papers, cell, value):
    assert papers.cells[cell].value == value


def test_toy_convolution_is_exact(papers):
    assert papers.cells["sige/run-edits/toy/blocks"].tolerance < 1 / 783


def test_church_ddpm_has_the_wider_tolerance(papers):
    assert papers.cells["sige/edit-size/ddpm-15.5/macs"].tolerance == pytest.approx(0.02 + 0.05 / 78.9)


def test_small_church_edit_is_image_432_and_the_large_one_423(papers):
    edits = {row: papers.cells[f"sige/edit-size/ddpm-{row}/macs"].matches[0][0]["edit"] for row in ("1.20", "15.5")}
    assert edits == {"1.20": "church-432", "15.5": "church-423"}


@pytest.mark.parametrize("size", ["7.19", "3.78", "11.5", "9.4"])
def test_sizes_without_a_sample_are_matched_by_brush_strokes(papers, size):
    cells = [cell for cell in papers.cells.values() if cell.edit == f"church-{size}" and cell.value is not None]
    assert cells
    assert all(any(fields["edit"].startswith("brush-") and why for fields, why in cell.matches) for cell in cells)


def test_gpu_swap_and_chart_label_are_noted(papers):
    assert "GPU swap" in papers.cells["fisedit/headline/abstract/x_titan"].note
    assert "7.43" in papers.cells["sige/efficiency/ddpm-ours/macs_ratio"].note


def test_derived_rows_of_fisedit_are_not_comparable(papers):
    assert papers.cells["fisedit/table3/sdedit-0.8/edit_macs"].why_not_comparable.startswith("arithmetic")


def test_reference_runs_are_not_called_published(papers):
    kinds = {cell.kind for cell in papers.cells.values() if cell.source == "RUN"}
    assert kinds == {"reference"}


def test_every_cell_has_a_tolerance_and_an_item(papers):
    assert all(cell.tolerance >= 0 and not math.isnan(cell.tolerance) for cell in papers.cells.values())
    assert all((cell.paper, cell.item) in papers.items for cell in papers.cells.values())
