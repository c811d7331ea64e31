"""The papers' numbers: load and check ``conf/paper/*.yaml`` and spread its tables into one cell a number.

A file holds what a paper prints, table by table; every entry of a row's ``values`` becomes one :class:`Cell` with the
id ``<paper>/<table>/<row>/<column>``. What a row does not say it takes from its table (``of``), then from the column.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

CONFIDENCES = ("A", "B", "C", "?")
KINDS = ("published", "derived", "reference")
ITEM_KINDS = ("figure", "table", "appendix", "text", "reference")

_FILE_KEYS = {"paper", "title", "reference", "sources", "confidence", "protocol", "hardware", "edits"}
_FILE_KEYS |= {"columns", "items", "tables"}
_ITEM_KEYS = {"name", "kind", "version", "established", "number_presumed", "title", "shows", "cannot"}
_COLUMN_KEYS = {"metric", "unit", "scope", "hardware", "tolerance", "model", "needs", "ambiguous"}
_TABLE_KEYS = {"of", "rows"}
_ROW_KEYS = {"source", "confidence", "kind", "item", "model", "edit", "method", "scope", "tolerance", "against"}
_ROW_KEYS |= {"note", "notes", "not_comparable", "values"}
_EDIT_KEYS = {"area", "available", "stand_ins"}
_HARDWARE_KEYS = {"name", "device", "backend"}


class TargetError(ValueError):
    """A file of paper numbers that cannot be used; the message names the file, the place and what would be right."""


@dataclass(frozen=True)
class Item:
    """One figure, table or appendix part of a paper."""

    id: str
    paper: str
    name: str
    kind: str
    version: str
    established: bool
    title: str
    shows: str
    cannot: str = ""
    number_presumed: bool = False


@dataclass(frozen=True)
class Hardware:
    """A machine of a paper, and how to recognise it: a part of the device's own name and, if given, the backend."""

    id: str
    name: str
    device: str
    backend: str = ""


@dataclass(frozen=True)
class Cell:
    """One number of a paper, with what a measured row must be to answer it.

    ``value`` is None where the number exists and could not be recovered. ``tolerance`` is relative and already holds
    half a unit of the last printed digit. ``matches`` lists (fields of a table row, why the answer is ambiguous or
    ""), best first. ``area`` is the fraction of the picture that the edit covers. ``against`` names the model a ratio
    is taken against, where that is not the model itself.
    """

    id: str
    paper: str
    item: str
    label: str
    value: float | None
    unit: str
    metric: str
    model: str
    edit: str
    method: str
    scope: str
    hardware: str
    source: str
    confidence: str
    kind: str
    tolerance: float
    matches: tuple[tuple[dict, str], ...]
    area: float = math.nan
    against: str = ""
    why_not_comparable: str = ""
    needs: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Targets:
    """All papers together: titles, sources, machines, items and cells."""

    papers: dict[str, dict] = field(default_factory=dict)
    hardware: dict[str, Hardware] = field(default_factory=dict)
    items: dict[tuple[str, str], Item] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)

    def of_table(self, paper: str, table: str) -> list[Cell]:
        """Return the cells of one table, in printed order; empty if there is no such table."""
        return [cell for cell in self.cells.values() if cell.id.startswith(f"{paper}/{table}/")]


def configuration_folder(part: str = "paper") -> Path:
    """Return the folder ``conf/<part>`` of the checkout or the installed package."""
    import sige

    for root in map(Path, sige.__path__):
        if (root / "conf" / part).is_dir():
            return root / "conf" / part
    raise TargetError(f"there is no folder conf/{part} beside the package; install the project with its configuration.")


def load(folder: str | Path | None = None) -> Targets:
    """Load every ``*.yaml`` of ``folder`` (default: the project's ``conf/paper``); TargetError on a broken one."""
    folder = configuration_folder() if folder is None else Path(folder)
    paths = sorted(folder.glob("*.yaml"), key=lambda path: (not path.stem.startswith("sige"), path.stem))
    files = {path.stem: _read(path) for path in paths}
    if not files:
        raise TargetError(f"{folder} holds no *.yaml with the papers' numbers.")
    targets = Targets()
    for name, content in files.items():
        where = f"{name}.yaml"
        if "extends" in content:
            _known(content, {"extends", "tables"}, where)
            if content["extends"] not in files:
                raise TargetError(f"{where} extends {content['extends']!r}, which is not in {folder}.")
            base = files[content["extends"]]
        else:
            _known(content, _FILE_KEYS, where)
            base = content
            _add_vocabulary(targets, base, where)
        for table, body in content.get("tables", {}).items():
            _known(body, _TABLE_KEYS, f"{where}: {table}")
            for row, entry in body["rows"].items():
                _add_row(targets, base, f"{base['paper']}/{table}/{row}", body.get("of", {}), entry, where)
    return targets


def _read(path: Path) -> dict:
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # the loader has many error types: each becomes one sentence with the file's name
        raise TargetError(f"{path.name} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise TargetError(f"{path.name} must hold a mapping at its top.")
    return content


def _known(found: dict, allowed: set[str], where: str) -> None:
    unknown = sorted(set(found) - allowed)
    if unknown:
        raise TargetError(f"{where}: unknown key {unknown[0]!r}; allowed are {sorted(allowed)}.")


def _add_vocabulary(targets: Targets, content: dict, where: str) -> None:
    paper = content["paper"]
    told = ("title", "reference", "protocol", "sources", "confidence")
    targets.papers[paper] = {key: content.get(key, "") for key in told}
    for name, entry in content["hardware"].items():
        _known(entry, _HARDWARE_KEYS, f"{where}: hardware {name}")
        targets.hardware[name] = Hardware(name, **entry)
    for name, entry in content["items"].items():
        _known(entry, _ITEM_KEYS, f"{where}: item {name}")
        if entry["kind"] not in ITEM_KINDS:
            raise TargetError(f"{where}: item {name} has kind {entry['kind']!r}; allowed are {ITEM_KINDS}.")
        targets.items[paper, name] = Item(name, paper, **entry)
    for name, entry in content["columns"].items():
        _known(entry, _COLUMN_KEYS, f"{where}: column {name}")
    for name, entry in content["edits"].items():
        _known(entry, _EDIT_KEYS, f"{where}: edit {name}")


def _add_row(targets: Targets, base: dict, row_id: str, table: dict, row: dict, where: str) -> None:
    place = f"{where}: {row_id}"
    _known(table, _ROW_KEYS, f"{place} (of)")
    _known(row, _ROW_KEYS, place)
    entry = {**table, **row}
    for name in ("item", "source", "confidence", "edit", "method", "values"):
        if name not in entry:
            raise TargetError(f"{place}: `{name}` is missing; give it in the row or in the table's `of`.")
    checks = {"source": base["sources"], "confidence": CONFIDENCES, "item": base["items"]}
    for name, allowed in checks.items():
        if entry[name] not in allowed:
            raise TargetError(f"{place}: {name} {entry[name]!r} is not one of {list(allowed)}.")
    if entry["edit"] != "any" and entry["edit"] not in base["edits"]:
        raise TargetError(f"{place}: edit {entry['edit']!r} is not described under `edits`.")
    if entry.get("kind", "published") not in KINDS:
        raise TargetError(f"{place}: kind {entry['kind']!r} is not one of {list(KINDS)}.")
    for column, value in entry["values"].items():
        if column not in base["columns"]:
            raise TargetError(f"{place}: column {column!r} is not described under `columns`.")
        cell = _cell(base, row_id, entry, column, value, place)
        if cell.id in targets.cells:
            raise TargetError(f"{place}: the cell {cell.id} is given twice.")
        targets.cells[cell.id] = cell


def _cell(base: dict, row_id: str, row: dict, column: str, value: float | None, place: str) -> Cell:
    described = base["columns"][column]
    model = described.get("model") or row.get("model")
    if not model:
        raise TargetError(f"{place}: `model` is missing for column {column!r}.")
    hardware = described.get("hardware", "any")
    if hardware != "any" and hardware not in base["hardware"]:
        raise TargetError(f"{place}: hardware {hardware!r} is not described under `hardware`.")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TargetError(f"{place}: the value of {column!r} is {value!r}; give a number, or null if not available.")
    tolerance = row.get("tolerance", {})
    tolerance = tolerance if isinstance(tolerance, int | float) else tolerance.get(column, described["tolerance"])
    metric, edit, method = described["metric"], row["edit"], row["method"]
    scope = row.get("scope", described.get("scope", "step"))
    note = "; ".join(text for text in (row.get("note", ""), row.get("notes", {}).get(column, "")) if text)
    return Cell(
        id=f"{row_id}/{column}",
        paper=base["paper"],
        item=row["item"],
        label=f"{metric} · {model} · {method} · {edit}",
        value=None if value is None else float(value),
        unit=described["unit"],
        metric=metric,
        model=model,
        edit=edit,
        method=method,
        scope=scope,
        hardware=hardware,
        source=row["source"],
        confidence=row["confidence"],
        kind=row.get("kind", "published"),
        tolerance=float(tolerance) + _half_digit(value),
        matches=tuple(_matches(base["edits"], metric, model, edit, method, scope, described.get("ambiguous", ""))),
        area=math.nan if edit == "any" else base["edits"][edit].get("area", math.nan),
        against=row.get("against", "") if metric in ("macs_ratio", "speedup") else "",
        why_not_comparable=row.get("not_comparable", ""),
        needs=tuple(described.get("needs", ())),
        note=note,
    )


def _half_digit(value: float | None) -> float:
    """Return half a unit of the last printed digit, relative to the value: 18 -> 0.5/18, 7.5 -> 0.05/7.5."""
    if not value:
        return 0.0
    digits = 0 if isinstance(value, int) else len(repr(value).split(".")[1])
    return 0.5 * 10.0**-digits / abs(value)


def _matches(edits: dict, metric: str, model: str, edit: str, method: str, scope: str, ambiguous: str):
    """Yield (fields, why ambiguous) of the table rows that answer a cell, best first."""
    ways = [{"metric": metric, "method": method}]
    if metric == "macs" and method == "dense":
        ways += [{"metric": "macs", "method": "dense_channels_last"}, {"metric": "dense_macs"}]
    if metric in ("params", "weight_bytes"):  # of the model, told by its dense row
        ways = [{"metric": metric, "method": "dense"}]
    if metric == "edit_area":
        ways = [{"column": "edit_area"}]
    fixed = {"scope": scope} if metric != "edit_area" else {}
    if model != "any":
        fixed["model"] = model
    for way in ways:
        way = {key: value for key, value in {**fixed, **way}.items() if value != "any"}
        if edit == "any":
            yield way, ambiguous
            continue
        described = edits[edit]
        yield {**way, "edit": edit}, ambiguous
        for stand_in in described.get("stand_ins", ()):
            missing = "the paper's own edit of this size is not available"
            missing = "the sample was not at hand" if described["available"] else missing
            yield {**way, "edit": stand_in}, f"{missing}; the generated edit {stand_in} stands in"
