"""The one long table that every figure, table, report and dashboard reads: its columns, and how it is read and written.

One row is one value of one metric of one run, or one failed run. The file is Parquet with the schema version in its
metadata; a CSV mirror and ``schema.json`` lie beside it. A write goes to a temporary file first and replaces the
table only when it is whole, so a killed process or a full disk leaves the former table readable.
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

SCHEMA_VERSION = 1
_VERSION_KEY = b"sige_schema_version"

STATUSES = ("ok", "error", "oom", "timeout", "skipped", "missing_weights", "interrupted", "invalid")
PROVENANCES = ("measured", "shipped", "paper")
SCOPES = ("kernel", "layer", "step", "loop", "edit")

# name -> (pandas dtype, what it means)
COLUMNS: dict[str, tuple[str, str]] = {
    "run_id": ("str", "identity of the run: hash of config, code, weights, data and, for timed rows, machine"),
    "status": ("str", "how the run ended: " + ", ".join(STATUSES)),
    "reason": ("str", "why it did not end ok, or what a reader must know of this row; may be empty"),
    "experiment": ("str", "name of the experiment the run belongs to"),
    "paper_cell": ("str", "id of the paper's number this run was planned for; may be empty"),
    "model": ("str", "model id"),
    "weights": ("str", "random, scenes or pretrained"),
    "hardware": ("str", "name of the hardware configuration, e.g. cpu"),
    "device": ("str", "the device as it names itself"),
    "dtype": ("str", "arithmetic of the run, e.g. float32"),
    "dataset": ("str", "where the edit comes from"),
    "edit": ("str", "name of the edit, e.g. church-432 or brush-1.2"),
    "edit_area": ("float64", "fraction 0..1 of the final mask at full resolution; NaN without an edit"),
    "method": ("str", "method that was run, e.g. dense, sige, incremental"),
    "policy": ("str", "engine policy behind the method; empty for dense"),
    "scope": ("str", "what one value covers: " + ", ".join(SCOPES)),
    "metric": ("str", "what was measured; empty on a failed run"),
    "value": ("float64", "the value in `unit`; NaN on a failed run"),
    "unit": ("str", "unit of value, lo and hi"),
    "lo": ("float64", "lower end of the 95 % interval, NaN where there is none"),
    "hi": ("float64", "upper end of the 95 % interval, NaN where there is none"),
    "n": ("int64", "number of samples behind the value"),
    "baseline": ("str", "method a ratio is against; empty when none"),
    "provenance": ("str", "measured here, shipped with the project, or printed in a paper"),
    "code": ("str", "digest of the code that makes the number"),
    "config": ("str", "resolved configuration as compact JSON"),
    "seed": ("int64", "seed of the run"),
    "started": ("str", "start of the run, ISO 8601, UTC"),
}


class SchemaError(ValueError):
    """A table that does not follow this schema, or was written under another version of it."""


def empty_table() -> pd.DataFrame:
    """Return a table without rows, with every column in order and in its dtype."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, (dtype, _) in COLUMNS.items()})


def validate(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with columns in order and dtype; raise SchemaError in one sentence if it breaks a rule."""
    missing = [name for name in COLUMNS if name not in table.columns]
    unknown = [name for name in table.columns if name not in COLUMNS]
    if missing or unknown:
        raise SchemaError(
            "a results table has exactly the columns of sige.analysis.schema.COLUMNS: "
            f"missing {missing}, unknown {unknown}."
        )
    table = _coerce(table)
    _one_of(table, "status", STATUSES)
    _one_of(table, "provenance", PROVENANCES)
    ok = table["status"] == "ok"
    _one_of(table[ok], "scope", SCOPES)
    _refuse(table, ok & (table["metric"] == ""), "is ok but names no metric; an ok row needs one")
    _refuse(
        table, ok & table["value"].isna(), "is ok but its value is NaN; record a failure with a status and a reason"
    )
    _refuse(table, ~ok & (table["reason"] == ""), "failed without a reason; say why in the column `reason`")
    _refuse(table, ~ok & table["value"].notna(), "failed and carries a value; a failed run has value NaN")
    _refuse(table, table["run_id"] == "", "has no run_id")
    area = table["edit_area"]
    _refuse(table, area.notna() & ~area.between(0, 1), "has an edit_area outside 0..1; give a fraction, not percent")
    _refuse(table, table["lo"] > table["hi"], "has an interval whose lower end lies above its upper end")
    return table


def describe() -> dict:
    """Return the written schema: version, columns with dtype and meaning, and the closed vocabularies."""
    columns = {name: {"dtype": dtype, "meaning": meaning} for name, (dtype, meaning) in COLUMNS.items()}
    return {
        "version": SCHEMA_VERSION,
        "columns": columns,
        "status": list(STATUSES),
        "provenance": list(PROVENANCES),
        "scope": list(SCOPES),
    }


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table written by :func:`write_table`.

    Raises FileNotFoundError where there is none, and SchemaError where it is no table of ours or of another version.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no results table at {path}; run `make reproduce` or `python -m sige.runs` first.")
    try:
        found = (parquet.read_schema(path).metadata or {}).get(_VERSION_KEY)
        if found is None or found.decode() != str(SCHEMA_VERSION):
            raise SchemaError(_version_sentence(path, found))
        return validate(parquet.read_table(path).to_pandas())
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise SchemaError(f"{path} cannot be read as a Parquet table ({error}); move it away and run again.") from error


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write ``table`` to ``path`` (Parquet), a CSV mirror and ``schema.json`` beside it; return ``path``.

    Nothing is replaced before everything is on the disk. Raises SchemaError for a table that breaks the schema and
    OSError (disk full, no permission) with the former files untouched.
    """
    path = Path(path)
    table = validate(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    targets = {path: _parquet_bytes(table), path.with_suffix(".csv"): table.to_csv(index=False).encode()}
    targets[path.parent / "schema.json"] = (json.dumps(describe(), indent=2) + "\n").encode()
    write_atomically(targets)
    return path


def write_atomically(files: dict[Path, bytes]) -> None:
    """Write several files so that each is either the former one or the whole new one, in the order given.

    Every temporary file is on the disk before the first replacement; on an error all of them are removed and the
    error goes on to the caller.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for target, data in files.items():
            _remove_leftovers(target)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            staged.append((temporary, target))
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, target in staged:
            os.replace(temporary, target)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _parquet_bytes(table: pd.DataFrame) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet as parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION).encode()}
    buffer = io.BytesIO()
    parquet.write_table(arrow.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of writers that were killed; those of a living process are left alone."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _version_sentence(path: Path, found: bytes | None) -> str:
    have = "no schema version" if found is None else f"schema version {found.decode()}"
    return (
        f"{path} has {have}, this code reads version {SCHEMA_VERSION}; "
        "read it with the code that wrote it, or move it away and run again."
    )


def _coerce(table: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name, (dtype, _) in COLUMNS.items():
        column = table[name]
        try:
            if dtype == "str":
                columns[name] = column.astype(object).where(column.notna(), "").astype(str).astype("str")
            elif dtype == "int64":
                columns[name] = pd.to_numeric(column).fillna(0).astype("int64")
            else:
                columns[name] = pd.to_numeric(column).astype("float64")
        except (TypeError, ValueError) as error:
            raise SchemaError(f"column `{name}` must hold {dtype} values: {error}.") from error
    return pd.DataFrame(columns).reset_index(drop=True)


def _one_of(table: pd.DataFrame, column: str, allowed: tuple[str, ...]) -> None:
    wrong = sorted(set(table[column]) - set(allowed))
    if wrong:
        raise SchemaError(f"column `{column}` holds {wrong}; allowed are {list(allowed)}.")


def _refuse(table: pd.DataFrame, broken: pd.Series, what: str) -> None:
    if broken.any():
        row = int(np.flatnonzero(broken.to_numpy())[0])
        raise SchemaError(f"row {row} (run {table['run_id'].iloc[row]!r}) {what}.")
