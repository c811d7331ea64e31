"""Keep what was measured here as rows that ship with the project: ``python -m sige.analysis.ship RESULTS FILE.csv``.

Shipped rows are shown beside what a user measures and never count as measured by them. Only rows that went well are kept, and
of timed runs only those that no other process disturbed.
"""

import sys
from pathlib import Path

import pandas as pd

from sige.analysis import schema

# Long, or of no use on another machine.
_LEFT_OUT = ("config", "paper_cell")


def shippable(table: pd.DataFrame, experiments: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of ``table`` worth shipping, with provenance ``shipped``; of ``experiments`` only, where given."""
    rows = table[(table["status"] == "ok") & (table["provenance"] == "measured") & (table["reason"] == "")]
    if experiments:
        rows = rows[rows["experiment"].isin(experiments)]
    return rows.assign(provenance="shipped").drop(columns=list(_LEFT_OUT))


def main(arguments: list[str]) -> int:
    """Write the shippable rows of a results folder to a CSV file; returns the exit code."""
    if len(arguments) < 2:
        print("usage: python -m sige.analysis.ship RESULTS_FOLDER FILE.csv [EXPERIMENT ...]", file=sys.stderr)
        return 2
    folder, target, *experiments = arguments
    rows = shippable(schema.read_table(Path(folder) / "runs.parquet"), tuple(experiments))
    if rows.empty:
        print(f"{folder}/runs.parquet holds no measured row that went well: nothing to ship", file=sys.stderr)
        return 1
    schema.write_atomically({Path(target): rows.to_csv(index=False).encode()})
    print(f"{len(rows)} rows -> {target}; say in analysis/shipped/README.md where they come from")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
