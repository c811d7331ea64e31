"""The written tables: efficiency beside the paper's values, remembered bytes by kind, time by operator class.

Each is a data frame of display-ready numbers, written as Markdown and CSV under ``results/tables``.
"""

import math
from pathlib import Path

import pandas as pd

from sige.analysis import editing_tables, gpu_table, kernel_tables, network_tables
from sige.analysis.schema import write_atomically
from sige.analysis.selection import (
    HEADLINE_MODEL,
    SMALL_EDITS,
    first_edit,
    in_order,
    measured,
    networks,
    newest_device,
    own_rows,
    pivot,
)
from sige.analysis.targets import Targets

_METRICS = ["macs", "macs_ratio", "latency", "speedup", "efficiency", "error_rel_l2_in_mask", "error_rel_l2", "psnr"]
_METRICS += ["state_bytes.total", "peak_memory", "gate"]
# What the reference modules store for a network: table/row of conf/paper/sige_reference.yaml.
_REFERENCE_STATE = {
    "ddpm_church256": "run-state/ddpm",
    "pd_church128": "run-state/pd128-paper",
    "pd_church256": "run-state/pd256",
    "gaugan_cityscapes": "run-state/gaugan",
    "gan_compression": "run-state/gancomp",
    "sd14_unet": "run-state/sd-unet",
    "sd_vae_encoder": "run-state/sd-encoder",
    "sd_vae_decoder": "run-state/sd-decoder",
}
# How an edit and a method of ours find their cell among the paper's numbers: table/row of conf/paper/sige.yaml.
_PAPER_ROWS = {
    ("church-432", "sige"): "sige/efficiency/ddpm-ours",
    ("church-423", "sige"): "sige/edit-size/ddpm-15.5",
    ("church-432", "sige_public"): "sige/run-edits/ddpm-public-432",
    ("church-423", "sige_public"): "sige/run-edits/ddpm-public-423",
}


def efficiency_table(table: pd.DataFrame, targets: Targets, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one row an edit, method and dtype of the church DDPM: cost, speed, error, state, and the paper's MACs.

    Times are of the newest device; ``verdict`` is that of the cell ``paper MACs (G)`` comes from.
    """
    rows = measured(table)
    device = newest_device(rows)
    timed = rows["metric"].isin(["latency", "speedup", "efficiency"])
    wide = pivot(rows[~timed | (rows["device"] == device)], _METRICS)
    said = verdicts.set_index("cell")["verdict"]
    out = []
    for edit, method, dtype in _ordered(wide):
        row = wide.loc[(edit, method, dtype)]
        dense = method.startswith("dense")
        prefix = "sige/efficiency/ddpm-original" if dense else _PAPER_ROWS.get((edit, method), "")
        cell = targets.cells.get(f"{prefix}/macs")
        red = row["gate"] == 0
        out.append(
            {
                "edit": edit,
                "area (%)": 100 * row["edit_area"],
                "method": method,
                "dtype": dtype,
                "MACs (G)": row["macs"],
                "MACs ratio": row["macs_ratio"],
                "paper MACs (G)": math.nan if cell is None else cell.value,
                "verdict": "" if cell is None or (dense and method != "dense") else said.get(cell.id, ""),
                "time (ms)": row["latency"],
                "speed-up": row["speedup"],
                "95 % from": row["speedup.lo"],
                "to": row["speedup.hi"],
                "against": row["speedup.baseline"],
                "efficiency": row["efficiency"],
                "error in mask": row["error_rel_l2_in_mask"],
                "error": row["error_rel_l2"],
                "PSNR (dB)": row["psnr"],
                "state (MiB)": row["state_bytes.total"],
                "peak (MiB)": row["peak_memory"],
                "gate": "red" if red else "" if math.isnan(row["gate"]) else "green",
            }
        )
    return pd.DataFrame(out)


def state_table(table: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Return the remembered MiB of one step by kind, a row a network, method and dtype, beside the reference engine's total."""
    rows = own_rows(table)
    rows = rows[rows["metric"].str.startswith("state_bytes.")]
    kinds = sorted(set(rows["metric"]) - {"state_bytes.total"})
    out = []
    for model in networks(rows):
        own = rows[rows["model"] == model]
        own = own[own["edit"] == own["edit"].iloc[-1]].drop_duplicates(["method", "dtype", "metric"], keep="last")
        for method in in_order(own["method"]):
            cell = targets.cells.get(f"sige/{_REFERENCE_STATE[model]}/state") if model in _REFERENCE_STATE else None
            reference = cell.value if cell is not None and cell.value else math.nan
            for dtype, one in own[own["method"] == method].groupby("dtype", sort=True):
                values = one.set_index("metric")["value"]
                total = values.get("state_bytes.total", math.nan)
                out.append(
                    {"network": model, "method": method, "dtype": dtype}
                    | {kind.removeprefix("state_bytes."): values.get(kind, math.nan) for kind in kinds}
                    | {"total (MiB)": total, "reference engine (MiB)": reference, "ratio": total / reference}
                )
    return pd.DataFrame(out)


def time_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each operator class in one step's time (percent), one row an edit, method and dtype."""
    rows = measured(table)
    rows = rows[rows["metric"].str.startswith("time_share.") & (rows["device"] == newest_device(rows))]
    metrics = sorted(set(rows["metric"]))
    wide = pivot(rows, metrics)
    out = []
    for key in _ordered(wide):
        row = wide.loc[key]
        shares = {metric.removeprefix("time_share.") + " (%)": 100 * row[metric] for metric in metrics}
        out.append(dict(zip(("edit", "method", "dtype"), key, strict=True)) | shares)
    return pd.DataFrame(out)


def allocator_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return time and speed-up of one step under both allocator settings, one row an edit, method and dtype.

    Verdicts and figures rest on the setting that keeps freed memory; the stock one inflates dense times.
    """
    device = newest_device(measured(table))
    settings = {"kept": measured(table), "stock": measured(table, stock_allocator=True)}
    wide = {}
    for name, rows in settings.items():
        rows = rows[rows["metric"].isin(["latency", "speedup"]) & (rows["device"] == device)]
        wide[name] = pivot(rows, ["latency", "speedup"])
    both = wide["kept"].join(wide["stock"], how="inner", rsuffix=" (stock)")
    out = []
    for key in _ordered(both):
        row = both.loc[key]
        out.append(
            dict(zip(("edit", "method", "dtype"), key, strict=True))
            | {"time (ms)": row["latency"], "time, stock (ms)": row["latency (stock)"]}
            | {"stock / kept": row["latency (stock)"] / row["latency"]}
            | {"speed-up": row["speedup"], "speed-up, stock": row["speedup (stock)"]}
        )
    return pd.DataFrame(out)


def headline_sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence a sparse method on what a small edit costs here, [] where nothing was measured."""
    rows = measured(table)
    rows = rows[rows["dtype"] == "float32"]
    edit = first_edit(rows, SMALL_EDITS)
    device = newest_device(rows)
    timed = rows["metric"].isin(["latency", "speedup", "efficiency"])
    wide = pivot(rows[(rows["edit"] == edit) & (~timed | (rows["device"] == device))], _METRICS)
    sentences = []
    for key in _ordered(wide):
        row = wide.loc[key]
        if math.isnan(row["macs_ratio"]):
            continue
        text = f"{key[1]} at {edit}: {number(row['macs'])} G MACs, {row['macs_ratio']:.2f}x fewer than the dense model"
        if not math.isnan(row["speedup"]):
            interval = f"[{row['speedup.lo']:.2f}, {row['speedup.hi']:.2f}]"
            text += f"; {number(row['latency'])} ms, {row['speedup']:.2f}x {interval}"
            text += f" faster than {row['speedup.baseline']} on {device}, {row['efficiency']:.2f} of the MACs ratio"
        elif row["gate"] == 0:
            text += "; no speed-up, the correctness gate is red: " + row["gate.reason"]
        sentences.append(text + ".")
    return sentences


def all_tables(table: pd.DataFrame, targets: Targets, verdicts: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return file name -> (title, data frame) of every table that is written."""
    return {
        "sige-efficiency": (f"Cost of one step of {HEADLINE_MODEL}", efficiency_table(table, targets, verdicts)),
        "sige-allocator": ("Time of one step under both allocator settings", allocator_table(table)),
        "networks-macs": (
            "Every network: MACs of one step, and what is remembered",
            network_tables.counts_table(table, targets, verdicts),
        ),
        "sige-stable-diffusion": (
            "Stable Diffusion at 512x1024: MACs of SIGE's own tables",
            network_tables.stable_diffusion_table(table, targets),
        ),
        "fisedit-table3": (
            "FISEdit's Table 3: MACs of the U-Net at 768x768",
            network_tables.fisedit_table(table, targets, verdicts),
        ),
        "fisedit-table1": (
            "FISEdit's Table 1: what each part saves in a step",
            editing_tables.ablation(table, targets),
        ),
        "fisedit-table2": (
            "FISEdit's Table 2: a step's compute, remembered bytes and transfer",
            editing_tables.transfer(table, targets),
        ),
        "fisedit-whole-edits": (
            "FISEdit's Table 3: whole edits by every method",
            editing_tables.methods(table, targets),
        ),
        "sige-sequential": ("Edits in a row, each on top of the last", editing_tables.sequence(table)),
        "networks-time": ("Every network: time of one step", network_tables.times_table(table)),
        "kernels": ("Operators of the kernels one by one", kernel_tables.kernels(table)),
        "gpu": ("Time of one step on an NVIDIA GPU", gpu_table.gpu(table)),
        "sige-state": ("Remembered bytes of one step, MiB by kind", state_table(table, targets)),
        "sige-time-share": ("Time of one step by operator class", time_table(table)),
    }


def write(name: str, title: str, frame: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write one table as ``<name>.md`` and ``<name>.csv`` into ``folder``; return both paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / f"{name}.md": markdown(title, frame).encode(),
        folder / f"{name}.csv": frame.to_csv(index=False).encode(),
    }
    write_atomically(files)
    return list(files)


def markdown(title: str, frame: pd.DataFrame) -> str:
    """Return a Markdown table with a heading; one sentence instead where there are no rows."""
    if frame.empty:
        return f"## {title}\n\nNo rows in this table.\n"
    head = "| " + " | ".join(frame.columns) + " |"
    rule = (
        "|" + "|".join("---:" if pd.api.types.is_numeric_dtype(frame[name]) else "---" for name in frame.columns) + "|"
    )
    body = [
        "| " + " | ".join(number(value).replace("|", "\\|") for value in row) + " |"
        for row in frame.itertuples(index=False)
    ]
    return "\n".join([f"## {title}", "", head, rule, *body, ""])


def number(value: object) -> str:
    """Return a value for a reader: four significant digits, thousands apart, nothing for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None or value is pd.NA else str(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def _ordered(wide: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Keys by area of the edit, then method; the real samples before generated edits of equal area."""
    order = {name: place for place, name in enumerate(in_order(wide.index.get_level_values("method")))}
    areas = wide.groupby(level="edit")["edit_area"].median().fillna(-1.0)
    return sorted(
        wide.index,
        key=lambda key: (round(areas[key[0]], 4), not key[0].startswith("church"), key[0], order[key[1]], key[2]),
    )
