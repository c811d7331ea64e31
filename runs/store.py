"""The results on disk: the one long table, and a record of each run beside it.

Several processes may add to one folder: a file lock guards each merge, and the table is replaced in one piece. Rows
that could not be written (a full disk) stay here and go with the next merge.
"""

import json
import math
from pathlib import Path

import pandas as pd
from filelock import FileLock

from sige.analysis import schema
from sige.runs.errors import StoreError

# Runs that ended so are run again when asked for; the other failures would only repeat themselves.
RETRIED = ("interrupted", "error", "missing_weights")


class Store:
    """``folder``/runs.parquet with its CSV mirror, and ``folder``/samples/<run_id>.json."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.path = self.folder / "runs.parquet"
        self._pending: list[tuple[str, list[dict]]] = []

    def load(self) -> pd.DataFrame:
        """The table as it is on disk, empty where there is none. SchemaError for a table of another schema version."""
        return schema.read_table(self.path) if self.path.is_file() else schema.empty_table()

    def merge(self, config: str, rows: list[dict]) -> bool:
        """Add the rows of one run, in the place of earlier ones of the same configuration.

        Returns False where the disk took nothing (reason in ``problem``); the rows are kept for the next merge.
        """
        self._pending.append((config, rows))
        return self.flush()

    def flush(self) -> bool:
        """Write what is still pending; see ``merge``."""
        if not self._pending:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "runs.lock"):
                table = self.load()
                for config, rows in self._pending:
                    table = replaced(table, config, rows)
                schema.write_table(table, self.path)
        except OSError as error:
            self.problem = error
            return False
        self._pending.clear()
        return True

    def close(self) -> None:
        """Last try to write what is pending; StoreError says in one sentence what is lost and what is not."""
        if not self.flush():
            lost = sum(len(rows) for _, rows in self._pending)
            raise StoreError(
                f"cannot write {self.path}: {self.problem.strerror or self.problem}; the table there is unharmed, "
                f"{lost} rows of {len(self._pending)} runs are not in it."
            )

    def record(self, run_id: str) -> dict:
        """The record of a run (identity, environment, raw samples), {} where there is none that can be read."""
        try:
            return json.loads(self._record_path(run_id).read_text())
        except (OSError, ValueError):
            return {}

    def write_record(self, run_id: str, record: dict) -> None:
        """Write a run's record in one piece. A full disk is noted in ``problem`` and loses this record alone."""
        path = self._record_path(run_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            schema.write_atomically({path: json.dumps(record).encode()})
        except OSError as error:
            self.problem = error

    def _record_path(self, run_id: str) -> Path:
        return self.folder / "samples" / f"{run_id}.json"


def replaced(table: pd.DataFrame, config: str, rows: list[dict]) -> pd.DataFrame:
    """``table`` with ``rows`` in the place of every measured row of the same configuration (a former state of the code,
    or an attempt that failed). Shipped rows stay."""
    run_ids = {row["run_id"] for row in rows}
    gone = (table["provenance"] == "measured") & ((table["config"] == config) | table["run_id"].isin(run_ids))
    fresh = schema.validate(pd.DataFrame(rows, columns=list(schema.COLUMNS)))
    return fresh if gone.all() else pd.concat([table[~gone], fresh], ignore_index=True)


def clean(row: dict) -> dict:
    """A row as the schema wants it: a value that is not a number makes a failed row with a reason."""
    if row["status"] == "ok" and math.isnan(row["value"]):
        return {**row, "status": "error", "reason": f"{row['metric']} came out as NaN", "metric": ""}
    return row
