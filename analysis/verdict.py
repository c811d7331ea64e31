"""One verdict for each number of the papers, from the rows that were measured here.

Only rows with provenance ``measured`` and status ``ok`` decide. A shipped row is shown in its own column. A paper's
milliseconds or speed-ups on a machine that is not at hand are called not comparable, with what was measured beside.
"""

import math
from dataclasses import dataclass

import pandas as pd

from sige.analysis.answers import Answer, Rows
from sige.analysis.targets import Cell, Hardware, Targets

VERDICTS = (
    "reproduced",
    "better",
    "worse",
    "ambiguous",
    "not comparable",
    "not run",
    "published value not available",
)
COLUMNS = ["cell", "paper", "item", "label", "published", "unit", "measured", "lo", "hi", "relative_difference"]
COLUMNS += ["tolerance", "verdict", "why", "source", "run_id", "shipped_value", "kind", "confidence", "note"]

_LESS_IS_BETTER = (
    "macs",
    "latency",
    "fid",
    "lpips",
    "peak_memory",
    "state_bytes",
    "transfer",
    "travel_bytes",
    "edit_macs",
)
_MORE_IS_BETTER = (
    "macs_ratio",
    "edit_macs_ratio",
    "speedup",
    "edit_speedup",
    "calls_per_second",
    "efficiency",
    "miou",
    "psnr",
    "clip",
)
# First parts of the names of what runs/metrics/ measures; what a cell asks for beyond them nobody measures yet.
_MEASURED_HERE = (
    "macs",
    "dense_macs",
    "params",
    "weight_bytes",
    "latency",
    "speedup",
    "efficiency",
    "psnr",
    "peak_memory",
)
_MEASURED_HERE += ("edit_area", "mask_density.", "state_bytes.total", "calls_per_second", "error_max", "error_rel_l2")
_MEASURED_HERE += ("active_fraction", "fallbacks", "state_bytes.all_activations", "travel_bytes", "transfer")
_MEASURED_HERE += ("edit_macs", "edit_speedup", "edit_seconds", "edit_calls")
_NOT_MEASURED = ("edit_area_mean", "psnr_ground_truth", "psnr_original")  # of whole data sets
_BLANKED_BY_THE_GATE = ("speedup", "efficiency", "calls_per_second")


@dataclass(frozen=True)
class Known:
    """Names of the models and methods the project can run, to tell "not built yet" from "not run yet"."""

    models: frozenset[str]
    methods: frozenset[str]


def judge(table: pd.DataFrame, targets: Targets, known: Known | None = None) -> pd.DataFrame:
    """Return one row a cell with the columns :data:`COLUMNS`; ``table`` follows :mod:`sige.analysis.schema`.

    ``known`` defaults to the project's ``conf/model`` and ``conf/method`` and whatever was run in the table.
    """
    known = _known_names(table) if known is None else known
    index = _Index(table)
    return pd.DataFrame([_judge_cell(cell, index, targets, known) for cell in targets.cells.values()], columns=COLUMNS)


def counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """Return how many cells have each verdict, every verdict named, also those at zero."""
    found = verdicts["verdict"].value_counts()
    return {verdict: int(found.get(verdict, 0)) for verdict in VERDICTS}


def compare(
    measured: float, published: float, tolerance: float, direction: int, lo: float, hi: float
) -> tuple[str, str]:
    """Return (verdict, why) for a clean pair of numbers.

    ``direction``: -1 where less is better, +1 where more is, 0 where neither. ``lo``, ``hi``: 95 % interval or NaN.
    """
    difference = (measured - published) / abs(published)
    if abs(difference) <= tolerance:
        return "reproduced", ""
    sentence = f"{difference:+.1%} from the published value, tolerance {tolerance:.1%}"
    slack = tolerance * abs(published)
    if lo <= published + slack and hi >= published - slack:
        return "ambiguous", f"{sentence}; the measured 95 % interval reaches into the tolerance"
    if direction == 0:
        return "ambiguous", f"{sentence}; neither direction is better for this quantity"
    return ("better" if difference * direction > 0 else "worse"), sentence


class _Index:
    """The table's rows by what they may be used for."""

    def __init__(self, table: pd.DataFrame):
        ok = table["status"] == "ok"
        measured = table["provenance"] == "measured"
        stock = table["hardware"].str.endswith("-stock")  # inflates dense times: no verdict rests on it
        forced = table["hardware"].str.contains("+", regex=False)  # kernels that are not the device's own
        self.measured = Rows(table[ok & measured & ~stock & ~forced])
        self.shipped = Rows(table[ok & (table["provenance"] == "shipped")], by_policy=True)
        self.failed = Rows(table[~ok & measured])


def _judge_cell(cell: Cell, index: _Index, targets: Targets, known: Known) -> dict:
    hardware = targets.hardware.get(cell.hardware)
    answer = index.measured.answer(cell, hardware)
    elsewhere = index.measured.answer(cell, None) if answer is None and hardware is not None else None
    shipped = index.shipped.answer(cell, hardware)
    verdict, why = _verdict(cell, answer, elsewhere, index, hardware, known)
    shown = answer or elsewhere
    difference = math.nan
    if answer is not None and cell.value and verdict in ("reproduced", "better", "worse", "ambiguous"):
        difference = (answer.value - cell.value) / abs(cell.value)
    return {
        "cell": cell.id,
        "paper": cell.paper,
        "item": cell.item,
        "label": cell.label + ("" if hardware is None else f" · {hardware.name}"),
        "published": math.nan if cell.value is None else cell.value,
        "unit": cell.unit,
        "measured": math.nan if shown is None else shown.value,
        "lo": math.nan if shown is None else shown.lo,
        "hi": math.nan if shown is None else shown.hi,
        "relative_difference": difference,
        "tolerance": cell.tolerance,
        "verdict": verdict,
        "why": why,
        "source": cell.source,
        "run_id": "" if shown is None else shown.run_id,
        "shipped_value": math.nan if shipped is None else shipped.value,
        "kind": cell.kind,
        "confidence": cell.confidence,
        "note": cell.note,
    }


def _verdict(
    cell: Cell, answer: Answer | None, elsewhere: Answer | None, index: _Index, hardware: Hardware | None, known: Known
) -> tuple[str, str]:
    if cell.value is None:
        return "published value not available", cell.note or "the value could not be recovered from any source at hand"
    if cell.why_not_comparable:
        return "not comparable", cell.why_not_comparable
    if answer is None and elsewhere is not None:
        return "not comparable", f"measured on {elsewhere.device or 'another machine'}, the paper on {hardware.name}"
    if answer is None:
        return "not run", _why_not_run(cell, index, hardware, known)
    verdict, why = compare(answer.value, cell.value, cell.tolerance, _direction(cell), answer.lo, answer.hi)
    if answer.ambiguous:
        return "ambiguous", "; ".join(text for text in (answer.ambiguous, why) if text)
    return verdict, why


def _direction(cell: Cell) -> int:
    if cell.metric.startswith("macs") and cell.method.startswith("dense"):
        return 0
    if cell.metric.startswith(_MORE_IS_BETTER):
        return 1
    return -1 if cell.metric.startswith(_LESS_IS_BETTER) else 0


def _why_not_run(cell: Cell, index: _Index, hardware: Hardware | None, known: Known) -> str:
    edits = {fields["edit"] for fields, _ in cell.matches if "edit" in fields}

    def same(row: dict) -> bool:
        names = cell.model in ("any", row["model"]) and cell.method in ("any", row["method"])
        return names and (not edits or row["edit"] in edits)

    failed = [row for row in index.failed.all if same(row)]
    if failed:
        return f"failed ({failed[-1]['status']}): {failed[-1]['reason']}"
    red = [row for row in index.measured.of("gate") if same(row) and row["value"] == 0]
    if red and cell.metric in _BLANKED_BY_THE_GATE:
        return f"blanked: the correctness gate is red ({red[-1]['reason'] or 'error above its bound'})"
    if cell.needs:
        return "needs " + " and ".join(cell.needs)
    if cell.model != "any" and cell.model not in known.models:
        return f"the model {cell.model} is not in the project yet"
    if cell.method != "any" and cell.method not in known.methods:
        return f"the method {cell.method} is not in the project yet"
    if not cell.metric.startswith(_MEASURED_HERE) or cell.metric in _NOT_MEASURED:
        return f"{cell.metric} is not measured by the project yet"
    if hardware is not None:
        return f"needs {hardware.name}"
    return "no such run in this table"


def _known_names(table: pd.DataFrame) -> Known:
    from sige.analysis.targets import TargetError, configuration_folder

    names = []
    for part in ("model", "method"):
        seen = set(table.loc[table["provenance"] == "measured", part]) - {""}
        try:
            seen |= {path.stem for path in configuration_folder(part).glob("*.yaml")}
        except TargetError:
            pass  # a package without that configuration group: what the table names is all there is
        names.append(frozenset(seen))
    return Known(*names)
