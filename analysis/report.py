"""Everything that is made from the results table: verdicts, catalogue, figures, tables and one self-contained report.

``python -m sige.analysis.report [results_dir]`` writes them again from what has been measured.
"""

import sys
from pathlib import Path

import pandas as pd

from sige.analysis import catalogue, editing_tables, figures, network_tables, results, tables, targets, verdict
from sige.analysis.schema import SchemaError, write_atomically

_HEADLINE = (
    "sige/efficiency/ddpm-original/macs",
    "sige/efficiency/ddpm-ours/macs",
    "sige/efficiency/ddpm-ours/macs_ratio",
    "sige/edit-size/ddpm-15.5/macs",
    "sige/run-edits/ddpm-public-432/macs",
    "sige/run-edits/ddpm-public-423/macs",
    "sige/efficiency/ddpm-ours/x_3090",
    "sige/efficiency/ddpm-ours/x_m1cpu",
)


def build(results_dir: str | Path = "results") -> list[Path]:
    """Write verdicts.csv, catalogue.csv, figures/, tables/ and report.html into ``results_dir``; return what was made.

    Raises FileNotFoundError where there is no results table, SchemaError for one of another schema version and
    TargetError for a broken file of paper numbers.
    """
    folder = Path(results_dir)
    table = results.load_results(folder)
    papers = targets.load()
    verdicts = verdict.judge(table, papers)
    items = catalogue.build_catalogue(
        papers, verdicts, {**figures.by_item(), **network_tables.BY_ITEM, **editing_tables.BY_ITEM}
    )
    made = [folder / "verdicts.csv", folder / "catalogue.csv"]
    write_atomically(
        {path: frame.to_csv(index=False).encode() for path, frame in zip(made, (verdicts, items), strict=True)}
    )
    for spec in figures.all_figures().values():
        made += figures.write(spec, table, papers, folder / "figures")
    written = tables.all_tables(table, papers, verdicts)
    for name, (title, frame) in written.items():
        made += tables.write(name, title, frame, folder / "tables")
    page = render(folder, table, papers, verdicts, items, written)
    write_atomically({folder / "report.html": page.encode()})
    return [*made, folder / "report.html"]


def verdict_counts(results_dir: str | Path = "results") -> dict[str, int]:
    """Return how many of the papers' numbers have each verdict, from ``verdicts.csv`` (built first)."""
    path = Path(results_dir) / "verdicts.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no verdicts at {path}; run `python -m sige.analysis.report {results_dir}` first.")
    return verdict.counts(pd.read_csv(path, keep_default_na=False))


def render(
    folder: Path,
    table: pd.DataFrame,
    papers: targets.Targets,
    verdicts: pd.DataFrame,
    items: pd.DataFrame,
    written: dict[str, tuple[str, pd.DataFrame]],
) -> str:
    """Return the report as one HTML page that needs nothing beside it: style, pictures and script are inside."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = tables.number
    own = table[table["provenance"] == "measured"]
    newest_first = list(dict.fromkeys(own.sort_values("started", ascending=False, kind="stable")["run_id"]))
    drawings = [
        {"name": name, "caption": spec.caption, "svg": Markup(_inline(folder / "figures" / f"{name}.svg"))}
        for name, spec in figures.all_figures().items()
    ]
    return environment.get_template("report.html.j2").render(
        papers=papers.papers,
        counts=verdict.counts(verdicts),
        paper_counts={name: verdict.counts(verdicts[verdicts["paper"] == name]) for name in papers.papers},
        sentences=tables.headline_sentences(table),
        headline=_records(
            verdicts.set_index("cell", drop=False).loc[[cell for cell in _HEADLINE if cell in papers.cells]]
        ),
        drawings=drawings,
        tables=[(name, title, list(frame.columns), _records(frame)) for name, (title, frame) in written.items()],
        catalogue=_records(items),
        verdicts=_records(verdicts),
        failures=_records(own[own["status"] != "ok"]),
        facts=_facts(own),
        environment=results.environment(folder, newest_first),
        shipped=len(table) - len(own),
    )


def _facts(own: pd.DataFrame) -> dict[str, str]:
    """What the measured rows say of themselves, each as one line."""
    if own.empty:
        return {"rows": "none measured"}
    facts = {"rows": f"{len(own):,} of {own['run_id'].nunique():,} runs"}
    facts["started"] = f"{own['started'].min()} to {own['started'].max()}"
    for name in ("device", "hardware", "dtype", "weights", "model", "seed", "experiment"):
        facts[name] = "; ".join(sorted({str(value) for value in own[name]} - {""}))
    facts["code digests"] = ", ".join(sorted({code[:12] for code in own["code"]} - {""}))
    control = own[own["metric"] == "aa_control"]
    if len(control):
        spread = ", ".join(f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]" for row in control.itertuples())
        facts["A/A control (1 is no noise)"] = spread
    return facts


def _inline(path: Path) -> str:
    """Return an SVG as it can stand inside a page: from its root element on, without the metadata block."""
    text = path.read_text()
    text = text[text.index("<svg") :]
    if "<metadata>" in text:
        text = text[: text.index("<metadata>")] + text[text.index("</metadata>") + len("</metadata>") :]
    return text


def _records(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def main(arguments: list[str] | None = None) -> int:
    """Build everything for the folder named on the command line (default ``results``) and say what was made."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print("usage: python -m sige.analysis.report [results_dir]", file=sys.stderr)
        return 2
    folder = Path(arguments[0] if arguments else "results")
    try:
        made = build(folder)
    except (FileNotFoundError, SchemaError, targets.TargetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in made))
    print(", ".join(f"{count} {name}" for name, count in verdict_counts(folder).items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
