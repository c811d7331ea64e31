"""The paper's number that a row answers."""

import pytest

from sige.runs.cells import named


def row(**changes):
    base = {"metric": "macs", "scope": "step", "model": "gaugan_cityscapes", "edit": "cityscapes-pair"}
    return {**base, "method": "sige", "paper_cell": "", **changes}


@pytest.mark.parametrize(
    "changes, cell",
    [
        pytest.param({}, "sige/edit-size/gaugan-1.18/macs", id="edit"),
        pytest.param({"method": "dense", "edit": "brush-5"}, "sige/teaser/gaugan-original/macs", id="any edit"),
        pytest.param({"metric": "params", "method": "dense"}, "sige/run-dense/gaugan/params", id="model"),
        pytest.param({"edit": "brush-5"}, "", id="no such number"),
        pytest.param({"metric": ""}, "", id="failed run"),
        pytest.param({"paper_cell": "mine"}, "mine", id="named already"),
    ],
)
def test_a_row_names_its_cell(changes, cell):
    assert named([row(**changes)])[0]["paper_cell"] == cell
