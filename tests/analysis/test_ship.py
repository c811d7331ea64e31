"""Measured rows become rows that ship with the project, and can be read back as such."""

import pytest

from sige.analysis import results, schema, ship


@pytest.fixture
def folder(tmp_path, rows_of):
    table = rows_of(
        {"experiment": "a"},
        {"experiment": "a", "metric": "latency", "reason": "others took up to 50% of the machine"},
        {"experiment": "a", "status": "error", "reason": "died", "metric": "", "value": float("nan")},
        {"experiment": "b"},
    )
    schema.write_table(table, tmp_path / "runs.parquet")
    return tmp_path


@pytest.mark.parametrize("experiments, rows", [([], 2), (["b"], 1)], ids=["all", "one experiment"])
def test_rows_that_went_well_are_kept(folder, experiments, rows):
    (folder / "shipped").mkdir()
    assert ship.main([str(folder), str(folder / "shipped" / "machine.csv"), *experiments]) == 0
    read = results.shipped_rows(folder / "shipped")
    assert (len(read), set(read["provenance"])) == (rows, {"shipped"})


def test_nothing_to_ship_is_said(folder, capsys):
    assert ship.main([str(folder), str(folder / "none.csv"), "unknown"]) == 1
    assert "nothing to ship" in capsys.readouterr().err


def test_missing_arguments_show_the_usage(capsys):
    assert ship.main([]) == 2
    assert "usage: python -m sige.analysis.ship" in capsys.readouterr().err
