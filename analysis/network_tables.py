"""Tables over all networks: MACs and remembered bytes, the papers' own Stable Diffusion tables, time beside SIGE's engine."""

import math

import pandas as pd

from sige.analysis.selection import in_order, networks, newest_device, own_rows, pivot, reference_engine
from sige.analysis.targets import Cell, Targets

_KINDS = ("conv", "linear", "attention")
_COUNTED = ["macs", "macs_ratio", "active_fraction", "fallbacks", "state_bytes.total", "params"]
_COUNTED += [f"macs_by_kind.{kind}" for kind in _KINDS]
_TIMED = ["latency", "speedup", "efficiency", "macs_ratio", "error_rel_l2_in_mask", "gate"]
# The papers' items that are tables, and the table here that answers each.
BY_ITEM = {("sige", "sd-tables"): "sige-stable-diffusion", ("fisedit", "table3"): "fisedit-table3"}


def counts_table(table: pd.DataFrame, targets: Targets, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one row a network, edit and method: MACs by kind, share of them saved, what ran dense for want of a rule and
    what is remembered, beside the paper's MACs and those of the released code with their verdicts.
    """
    rows = own_rows(table)
    said = verdicts.set_index("cell")["verdict"]
    printed = _cells(targets)
    out = []
    for model in networks(rows):
        wide = pivot(rows[(rows["model"] == model) & (rows["dtype"] == "float32")], _COUNTED)
        seen_dense = False
        for edit, method in _keys(wide):
            row = wide.loc[(edit, method, "float32")]
            dense = method.startswith("dense")
            if math.isnan(row["macs"]) or (dense and seen_dense):  # dense MACs depend on neither edit nor layout
                continue
            seen_dense |= dense
            key = (model, "any", "dense") if dense else (model, edit, method)
            paper, reference = (printed.get((*key, kind)) for kind in ("published", "reference"))
            out.append(
                {"network": model, "edit": "" if dense else edit, "method": "dense" if dense else method}
                | {"area (%)": math.nan if dense else 100 * row["edit_area"], "MACs (G)": row["macs"]}
                | {f"{kind} (G)": row[f"macs_by_kind.{kind}"] for kind in _KINDS}
                | {"fewer": row["macs_ratio"], "paper (G)": _value(paper), "released code (G)": _value(reference)}
                | {"verdict": said.get((reference or paper).id, "") if reference or paper else ""}
                | {"recomputed (%)": 100 * row["active_fraction"], "without a rule": row["fallbacks"]}
                | {"state (MiB)": row["state_bytes.total"], "parameters (M)": row["params"]}
            )
    return pd.DataFrame(out)


def stable_diffusion_table(table: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Return SIGE's tables of Stable Diffusion at 512x1024: MACs of U-Net, encoder and decoder as printed, of its policy as
    counted here, and of ours.
    """
    rows = own_rows(table)
    macs = rows[rows["metric"] == "macs"].drop_duplicates(["model", "edit", "method"], keep="last")
    found = {(row.model, row.edit, row.method): row.value for row in macs.itertuples()}
    dense = {row.model: row.value for row in macs.itertuples() if row.method.startswith("dense")}
    lines: dict[str, dict] = {}
    for cell in targets.of_table("sige", "sd"):
        if cell.metric != "macs":
            continue
        task = cell.id.split("/")[2]
        part = {"sd14_unet": "U-Net", "sd_vae_encoder": "encoder", "sd_vae_decoder": "decoder"}[cell.model]
        line = lines.setdefault(task, {"task": task, "edit": "" if cell.edit == "any" else cell.edit})
        here = dense.get(cell.model) if cell.method == "dense" else found.get((cell.model, cell.edit, cell.method))
        line[f"{part}, printed (G)"] = _value(cell)
        line[f"{part}, here (G)"] = math.nan if here is None else here
        line[f"{part}, ours (G)"] = found.get((cell.model, cell.edit, "incremental"), math.nan)
    return pd.DataFrame(list(lines.values())) if len(macs) else pd.DataFrame()


def fisedit_table(table: pd.DataFrame, targets: Targets, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the MACs column of FISEdit's Table 3: as printed, as counted here under the engine's four settings, and ours."""
    rows = own_rows(table)
    macs = rows[rows["metric"] == "macs"].drop_duplicates(["model", "edit", "method"], keep="last")
    found = {(row.model, row.edit, row.method): row.value for row in macs.itertuples()}
    dense = {row.model: row.value for row in macs.itertuples() if row.method.startswith("dense")}
    said = verdicts.set_index("cell")
    out = []
    for cell in targets.of_table("fisedit", "table3"):
        if cell.metric != "macs":
            continue
        settings = {"all levels, active K/V": "fisedit_radical", "all levels, all K/V": "fisedit_full_kv"}
        settings |= {"24/48, active K/V": "fisedit_quality_radical", "24/48, all K/V": "fisedit", "ours": "incremental"}
        counted = {
            f"{name} (G)": found.get((cell.model, cell.edit, method), math.nan) for name, method in settings.items()
        }
        out.append(
            {"row": cell.id.split("/")[2], "model": cell.model, "edit": "" if cell.edit == "any" else cell.edit}
            | {"printed (G)": _value(cell)}
            | {"dense, here (G)": dense.get(cell.model, math.nan) if cell.method == "dense" else math.nan}
            | counted
            | {"verdict": said["verdict"].get(cell.id, ""), "why": said["why"].get(cell.id, "")}
        )
    return pd.DataFrame(out) if len(macs) else pd.DataFrame()


def times_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a network, edit and method that was timed on the newest device: milliseconds, speed-up against the best
    dense layout with its interval, efficiency, and what SIGE's own engine made of the same edit on a like machine.
    """
    rows = own_rows(table)
    device = newest_device(rows)
    timed = rows["metric"].isin(["latency", "speedup", "efficiency"])
    rows = rows[~timed | (rows["device"] == device)]
    out = []
    for model in networks(rows[rows["metric"] == "latency"]):
        wide = pivot(rows[(rows["model"] == model) & (rows["dtype"] == "float32")], _TIMED)
        for edit, method in _keys(wide):
            row = wide.loc[(edit, method, "float32")]
            if math.isnan(row["latency"]):
                continue
            peer = {} if method.startswith("dense") else reference_engine(table, model, edit)
            out.append(
                {"network": model, "edit": edit, "area (%)": 100 * row["edit_area"], "method": method}
                | {"time (ms)": row["latency"], "MACs ratio": row["macs_ratio"], "speed-up": row["speedup"]}
                | {"95 % from": row["speedup.lo"], "to": row["speedup.hi"], "efficiency": row["efficiency"]}
                | {"error in mask": row["error_rel_l2_in_mask"]}
                | {"gate": "" if math.isnan(row["gate"]) else "green" if row["gate"] else "red"}
                | {"SIGE's engine: speed-up": peer.get("speedup", math.nan)}
                | {"efficiency of it": peer["speedup"] / peer["macs_ratio"] if "speedup" in peer else math.nan}
            )
    return pd.DataFrame(out)


def _cells(targets: Targets) -> dict[tuple[str, str, str, str], Cell]:
    """(model, edit, method, kind) -> the cell with its MACs in G; of several, the one with most digits."""
    found: dict[tuple[str, str, str, str], Cell] = {}
    for cell in targets.cells.values():
        usable = cell.metric == "macs" and cell.unit == "G" and cell.value is not None and not cell.why_not_comparable
        key = (cell.model, cell.edit, cell.method, cell.kind)
        if usable and (key not in found or len(repr(cell.value)) > len(repr(found[key].value))):
            found[key] = cell
    return found


def _value(cell: Cell | None) -> float:
    return math.nan if cell is None or cell.value is None else cell.value


def _keys(wide: pd.DataFrame) -> list[tuple[str, str]]:
    """(edit, method) by area of the edit, then method."""
    rank = {name: place for place, name in enumerate(in_order(wide.index.get_level_values("method")))}
    areas = wide.groupby(level="edit")["edit_area"].median().fillna(-1.0)
    pairs = {(edit, method) for edit, method, _ in wide.index}
    return sorted(pairs, key=lambda pair: (round(areas[pair[0]], 4), pair[0], rank[pair[1]]))
