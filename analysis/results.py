"""Read what the runs left behind: the table, rows shipped with the project, and the environment that was recorded."""

import json
from pathlib import Path

import pandas as pd

from sige.analysis import schema


def load_results(results_dir: str | Path) -> pd.DataFrame:
    """Return the table of ``results_dir`` followed by the shipped rows.

    Raises FileNotFoundError without a table and SchemaError for one of another schema version.
    """
    table = schema.read_table(Path(results_dir) / "runs.parquet")
    shipped = shipped_rows()
    return pd.concat([table, shipped], ignore_index=True) if len(shipped) else table


def shipped_rows(folder: str | Path | None = None) -> pd.DataFrame:
    """Return the rows measured elsewhere that ship with the project (``analysis/shipped/*.csv``), schema-checked.

    A shipped file may leave out columns that do not apply; every row must carry provenance ``shipped``.
    """
    folder = Path(__file__).parent / "shipped" if folder is None else Path(folder)
    tables = []
    for path in sorted(folder.glob("*.csv")):
        rows = pd.read_csv(path, keep_default_na=False, na_values={"value": ["nan"]})
        for name, (dtype, _) in schema.COLUMNS.items():
            if name not in rows.columns:
                rows[name] = "" if dtype == "str" else 0 if dtype == "int64" else float("nan")
        found = sorted(set(rows["provenance"]))
        if found != ["shipped"]:
            raise schema.SchemaError(f"{path.name} must hold rows of provenance shipped only, found {found}.")
        tables.append(schema.validate(rows))
    return pd.concat(tables, ignore_index=True) if tables else schema.empty_table()


def environment(results_dir: str | Path, run_ids: list[str]) -> dict[str, str]:
    """Return the environment recorded with the first of ``run_ids`` that has one, as flat text; {} where none has."""
    for run_id in run_ids:
        try:
            record = json.loads((Path(results_dir) / "samples" / f"{run_id}.json").read_text())
        except (OSError, ValueError):
            continue  # a run without a readable record: the table still stands
        if record.get("environment"):
            return dict(_flatten(record["environment"]))
    return {}


def _flatten(value: object, name: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
