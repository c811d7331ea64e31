"""The report: one command makes every file, and the page needs nothing from outside."""

import contextlib
import io
import re
from pathlib import Path

import pandas as pd
import pytest

from sige.analysis import report, results, schema, verdict


@pytest.fixture(scope="module")
def command(fake_results):
    """Exit code of the command on the made-up results, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = report.main([str(fake_results)])
    return code, printed.getvalue()


@pytest.fixture(scope="module")
def built(fake_results, command):
    """The folder, and the files that the command names."""
    return fake_results, [Path(line) for line in command[1].splitlines()[:-1]]


@pytest.fixture(scope="module")
def page(built):
    return (built[0] / "report.html").read_text()


def test_everything_that_was_promised_is_made(built):
    folder, made = built
    names = {str(path.relative_to(folder)) for path in made}
    assert {
        "verdicts.csv",
        "catalogue.csv",
        "report.html",
        "figures/sige-efficiency.svg",
        "tables/sige-efficiency.md",
    } <= names
    assert all(path.is_file() for path in made)


def test_page_fetches_nothing(page):
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:|//|file:)""", page, flags=re.IGNORECASE)
    assert not re.search(r"@import|url\(\s*['\"]?(?:https?:|//)|<link|<iframe|<img|fetch\(|XMLHttpRequest", page)


def test_links_of_the_page_lead_somewhere(page):
    targets = set(re.findall(r'href="#([^"]+)"', page))
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert targets <= ids


def test_page_holds_the_pictures(page):
    assert page.count("<svg") == len(report.figures.all_figures())
    assert "<metadata>" not in page and "<!DOCTYPE svg" not in page


def test_ids_of_the_pictures_do_not_clash(page):
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        clips = set(re.findall(r'<clipPath id="([^"]+)"', drawing))
        assert all(page.count(f'<clipPath id="{clip}"') == 1 for clip in clips)


@pytest.mark.parametrize("name", verdict.VERDICTS)
def test_page_counts_every_verdict(built, page, name):
    count = report.verdict_counts(built[0])[name]
    assert re.search(rf"<b>{count}</b><span class=\"badge [a-z-]+\">{name}</span>", page)


def test_page_names_failed_runs(page):
    assert "made-up: 24 GiB were not enough" in page


def test_page_names_every_item_of_the_catalogue(built, page):
    catalogue = pd.read_csv(built[0] / "catalogue.csv", keep_default_na=False)
    assert all(name.replace("&", "&amp;") in page for name in catalogue["name"])


def test_environment_of_a_run_is_in_the_page(page):
    assert "<th>libraries.torch</th><td>0.0-fake</td>" in page


def test_text_of_a_row_cannot_become_markup(page):
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_report_of_an_empty_table_is_whole(tmp_path):
    schema.write_table(schema.empty_table(), tmp_path / "runs.parquet")
    report.build(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Nothing of the headline model has been measured yet." in page
    assert report.verdict_counts(tmp_path)["reproduced"] == 0


def test_counts_add_up_to_all_cells(built, papers):
    assert sum(report.verdict_counts(built[0]).values()) == len(papers.cells)


def test_counts_before_build_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m sige.analysis.report"):
        report.verdict_counts(tmp_path)


def test_command_without_a_table_says_so(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert f"no results table at {tmp_path}/runs.parquet; run `make reproduce`" in capsys.readouterr().err


def test_command_refuses_options(capsys):
    assert report.main(["--help"]) == 2
    assert "usage: python -m sige.analysis.report [results_dir]" in capsys.readouterr().err


def test_command_on_another_schema_version_names_both(tmp_path, monkeypatch, capsys, fake_table):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 9)
    schema.write_table(fake_table, tmp_path / "runs.parquet")
    monkeypatch.undo()
    assert report.main([str(tmp_path)]) == 1
    assert "has schema version 9, this code reads version 1" in capsys.readouterr().err


def test_command_prints_files_and_counts(command):
    code, printed = command
    assert code == 0
    assert "report.html" in printed and "reproduced" in printed


def test_shipped_rows_follow_the_schema_and_are_called_shipped():
    shipped = results.shipped_rows()
    assert len(shipped) and set(shipped["provenance"]) == {"shipped"}


def test_rows_that_claim_to_be_measured_are_not_shipped(tmp_path):
    (tmp_path / "wrong.csv").write_text(
        "run_id,status,scope,metric,value,unit,provenance\nx,ok,step,macs,1,G,measured\n"
    )
    with pytest.raises(
        schema.SchemaError, match="wrong.csv must hold rows of provenance shipped only, found \\['measured'\\]"
    ):
        results.shipped_rows(tmp_path)
