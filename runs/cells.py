"""Which number of a paper a measured row answers: its id goes into the row's column ``paper_cell``."""

import functools

from sige.analysis import targets


@functools.cache
def _printed() -> dict[tuple, str]:
    """(metric, scope, model, edit, method) -> id of the first cell that such a row answers without a stand-in."""
    found: dict[tuple, str] = {}
    for cell in targets.load().cells.values():
        fields, _ = cell.matches[0]
        if "metric" in fields and cell.hardware == "any":  # what depends on a machine is for the verdicts to say
            found.setdefault(tuple(fields.get(name, "any") for name in _FIELDS), cell.id)
    return found


_FIELDS = ("metric", "scope", "model", "edit", "method")


def named(rows: list[dict]) -> list[dict]:
    """The rows with ``paper_cell`` filled where it was empty and a paper has such a number; a row's own edit goes before
    numbers that hold for any edit."""
    return [row if row["paper_cell"] or not row["metric"] else {**row, "paper_cell": _cell(row)} for row in rows]


def _cell(row: dict) -> str:
    for edit in (row["edit"], "any"):
        found = _printed().get(tuple({**row, "edit": edit}[name] for name in _FIELDS))
        if found:
            return found
    return ""
