"""Find the row of the long table that answers a number of a paper."""

import math
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from sige.analysis.targets import Cell, Hardware

_TIMED = ("latency", "speedup", "calls_per_second")
_UNITS = {
    ("G", "M"): 1e3,
    ("ms", "s"): 1e-3,
    ("s", "ms"): 1e3,
    ("MiB", "MB"): 1.048576,
    ("MiB", "GB"): 1.048576e-3,
    ("fraction", "%"): 100.0,
}


@dataclass(frozen=True)
class Answer:
    """What a row says of a cell, in the cell's unit; ``ambiguous`` says why it is no clean answer, or is empty."""

    value: float
    lo: float
    hi: float
    run_id: str
    device: str
    ambiguous: str = ""


class Rows:
    """Rows of one provenance as dictionaries, oldest first; with ``by_policy`` a row also answers for its policy."""

    def __init__(self, table: pd.DataFrame, by_policy: bool = False):
        self.all = table.sort_values("started", kind="stable").to_dict("records")
        self.by_policy = by_policy
        self._metrics = defaultdict(list)
        for row in self.all:
            self._metrics[row["metric"]].append(row)

    def of(self, metric: str) -> list[dict]:
        """Return the rows of a metric, all rows for ""."""
        return self._metrics.get(metric, []) if metric else self.all

    def answer(self, cell: Cell, hardware: Hardware | None) -> Answer | None:
        """Return what these rows say of ``cell``, None if nothing; ``hardware`` None takes any machine.

        A ratio against another model is made from both models' own rows, calls per second from the latency.
        """
        if cell.against:
            return self._ratio_against(cell, hardware)
        found = self._find(cell, hardware, cell.metric)
        if found is None and cell.metric == "calls_per_second":
            time = self._find(cell, hardware, "latency", unit="s")
            if time is not None:
                found = Answer(1 / time.value, 1 / time.hi, 1 / time.lo, time.run_id, time.device, time.ambiguous)
        return found

    def _ratio_against(self, cell: Cell, hardware: Hardware | None) -> Answer | None:
        metric, unit = ("macs", "G") if cell.metric == "macs_ratio" else ("latency", "ms")
        own = self._find(cell, hardware, metric, unit)
        base = self._find(cell, hardware, metric, unit, {"model": cell.against, "method": "dense"})
        if own is None or base is None:
            return None
        return Answer(base.value / own.value, math.nan, math.nan, own.run_id, own.device, own.ambiguous)

    def _find(
        self, cell: Cell, hardware: Hardware | None, metric: str, unit: str = "", change: dict | None = None
    ) -> Answer | None:
        """Return the newest row that answers, trying the cell's ways of matching best first."""
        for fields, ambiguous in cell.matches:
            if self.by_policy and fields.get("edit", cell.edit) != cell.edit:
                continue  # a shipped row answers for the paper's own edit only
            wanted = {**fields, **(change or {})}
            column = wanted.pop("column", "value")
            asked = wanted.pop("metric", "")
            if change:
                wanted.pop("edit", None)
            for row in reversed(self.of(metric if asked == cell.metric else asked)):
                if math.isnan(row[column]) or not self._fits(row, wanted):
                    continue
                if hardware is not None and not is_on(row, hardware):
                    continue
                if metric in _TIMED and row["dtype"] != "float32":
                    continue
                return _answer(row, column, unit or cell.unit, ambiguous)
        return None

    def _fits(self, row: dict, wanted: dict) -> bool:
        for name, value in wanted.items():
            if row[name] != value and not (self.by_policy and name == "method" and row["policy"] == value):
                return False
        return True


def is_on(row: dict, hardware: Hardware) -> bool:
    """Tell whether a row was measured on a paper's machine: by configuration name, or by the device's own name."""
    if row["hardware"] == hardware.id:
        return True
    return hardware.device in row["device"] and hardware.backend in ("", row["hardware"])


def _answer(row: dict, column: str, unit: str, ambiguous: str) -> Answer:
    have = "fraction" if column == "edit_area" else row["unit"]
    factor = _UNITS.get((have, unit), 1.0)
    lo, hi = (row["lo"] * factor, row["hi"] * factor) if column == "value" else (math.nan, math.nan)
    return Answer(row[column] * factor, lo, hi, row["run_id"], row["device"] or row["hardware"], ambiguous)
