"""FISEdit's Tables 1 to 3 and edits in a row: what was measured of whole edits and of the parts of a step, beside what is printed."""

import math

import pandas as pd

from sige.analysis.selection import newest_device, own_rows
from sige.analysis.targets import Targets

BY_ITEM = {("fisedit", "table1"): "fisedit-table1", ("fisedit", "table2"): "fisedit-table2"}
BY_ITEM |= {("sige", "large-edits"): "sige-efficiency"}  # has every edit of the church DDPM, the large ones too
ABLATION = {  # method -> parts that are on, as the paper's columns call them; the paper's row
    "dense_unfused_attention": ("", "baseline"),
    "dense": ("Op", "op"),
    "fisedit_conv": ("Op, Conv", "fixed-blocks"),
    "fisedit_apsc": ("Op, APSC", "apsc"),
    "fisedit_apsc_attn": ("Op, APSC, Attn", "all"),
    "incremental": ("ours", ""),
}
_SIZES = {"sd21_unet": "768", "sd21_unet_512": "512", "sd21_narrow": "512"}
_BY_SIZE = ("_session", "_session_radical")  # methods whose cost depends on the edit
_MB = 1.048576


def ablation(table: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Return one row a network and set of parts: MACs and their ratio, time of a step and its ratio to the dense step with attention
    unfused in the same run, the error in the mask, and the paper's calls a second and ratio for the real network."""
    rows = own_rows(table)
    rows = rows[(rows["experiment"] == "fisedit_table1") & (rows["scope"] == "step")]
    device = newest_device(rows)
    rows = rows[(rows["metric"] != "latency") | (rows["device"] == device)]
    out = []
    for model, size in _SIZES.items():
        own = rows[rows["model"] == model]
        value = _values(own, ["edit"])
        for edit in dict.fromkeys(own["edit"]):
            dense = value.get((edit, "dense", "macs"), math.nan)
            times = own[(own["edit"] == edit) & (own["metric"] == "latency")]
            baseline = times[times["method"] == "dense_unfused_attention"].set_index("run_id")["value"].to_dict()
            runs = dict(zip(times["method"], times["run_id"]))  # of the newest times
            for method, (parts, row) in ABLATION.items():
                macs = value.get((edit, method, "macs"), math.nan)
                ms = value.get((edit, method, "latency"), math.nan)
                if math.isnan(macs) and math.isnan(ms):
                    continue
                printed = {} if model == "sd21_narrow" or not row else _printed(targets, f"fisedit/table1/{size}-{row}")
                out.append(
                    {"network": model, "edit": edit, "method": method, "parts": parts, "MACs (G)": macs}
                    | {
                        "fewer": dense / macs,
                        "time (ms)": ms,
                        "faster than the baseline": baseline.get(runs.get(method), math.nan) / ms,
                    }
                    | {"error in mask": value.get((edit, method, "error_rel_l2_in_mask"), math.nan)}
                    | {"paper (it/s)": printed.get("its", math.nan), "paper: faster": printed.get("x", math.nan)}
                )
    return pd.DataFrame(out)


def transfer(table: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Return one row a network, edit and method: time of a step, MB remembered and MB that the edit reads, time to bring them from the
    next tier of memory and what of it the edit waits for, beside every activation's; the paper's numbers for the real network."""
    rows = own_rows(table)
    rows = rows[(rows["experiment"] == "fisedit_table2") & (rows["scope"] == "step")]
    out = []
    printed_rows = {"fisedit-88": "edit-5", "fisedit-3": "edit-15", "fisedit-12": "edit-30"}
    for model in dict.fromkeys(rows["model"]):
        own = rows[rows["model"] == model]
        value = _values(own, ["edit"])
        areas = own.drop_duplicates("edit").set_index("edit")["edit_area"]
        for edit in sorted(areas.index, key=areas.get):
            for method in dict.fromkeys(own["method"]):

                def of(metric, factor=1.0, edit=edit, method=method):
                    return factor * value.get((edit, method, metric), math.nan)

                dense = method.startswith("dense")
                row = "without-cache-system" if dense else printed_rows.get(edit, "")
                paper = _printed(targets, f"fisedit/table2/{row}") if model == "sd21_unet" else {}
                paper = paper if method in ("dense", "fisedit_radical") else {}
                kept = of("state_bytes.all_activations" if dense else "state_bytes.total", _MB)
                if math.isnan(kept):
                    continue
                out.append(
                    {"network": model, "edit": edit, "area (%)": 100 * areas[edit], "method": method}
                    | {"time (ms)": of("latency"), "remembered (MB)": kept, "read (MB)": of("travel_bytes.total", _MB)}
                    | {
                        "rings (MB)": of("travel_bytes.ring", _MB),
                        "share of the maps (%)": of("travel_ring_share", 100),
                    }
                    | {"keys and values (MB)": of("travel_bytes.kv", _MB)}
                    | {"transfer (ms)": of("transfer.all_activations" if dense else "transfer")}
                    | {"waited for (ms)": of("transfer.exposed"), "of the step (%)": of("transfer.exposed_share", 100)}
                    | {"paper (MB)": paper.get("cached_all" if dense else "cached", math.nan)}
                    | {"paper: transfer, TITAN (ms)": paper.get("transfer_all" if dense else "transfer", math.nan)}
                )
    return pd.DataFrame(out)


def methods(table: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Return one row an edit and method of FISEdit's Table 3: U-Net calls and MACs of the whole edit at full size, a step's share,
    that of a sparse step alone as the paper has it, and the time of the whole edit on the small pipeline beside the plain one."""
    rows = own_rows(table)
    rows = rows[(rows["experiment"] == "fisedit_table3") & (rows["scope"] == "edit")]
    counted, timed = (
        _values(rows[rows["model"] == name], ["edit"]) for name in ("sd21_pipeline", "small_text_to_image")
    )
    areas = rows.drop_duplicates("edit").set_index("edit")["edit_area"]
    printed = {"sdtp": "sdtp", "sdip": "sdip", "prompt_to_prompt": "prompt-to-prompt", "sdedit": "sdedit-0.8"}
    printed |= {"diffedit": "diffedit-0.8", "instruct_pix2pix": "instruct-pix2pix"}
    own = {"fisedit-88": "fisedit-5", "fisedit-3": "fisedit-15", "fisedit-12": "fisedit-30"}
    dense = next((value for key, value in counted.items() if key[1:] == ("sdtp", "edit_macs_per_step")), math.nan)
    out, seen = [], set()
    for edit in sorted(areas.index, key=areas.get):
        for method in dict.fromkeys(rows[rows["edit"] == edit]["method"]):
            if method in seen and not method.endswith(_BY_SIZE):  # costs the same at every size
                continue
            seen.add(method)

            def of(values, metric, edit=edit, method=method):
                return values.get((edit, method, metric), math.nan)

            row = own.get(edit, "") if method == "fisedit_session_radical" else printed.get(method, "")
            paper = _printed(targets, f"fisedit/table3/{row}")
            step = of(counted, "edit_macs_per_step")
            out.append(
                {"edit": edit, "area (%)": 100 * areas[edit], "method": method}
                | {"MACs of a step, mean (G)": step, "fewer": dense / step}
                | {"of a sparse step (G)": of(counted, "edit_macs_per_sparse_step")}
                | {"paper (G)": paper.get("macs", paper.get("edit_macs", math.nan))}
                | {"whole edit, small pipeline (s)": of(timed, "edit_seconds"), "faster": of(timed, "edit_speedup")}
                | {"U-Net calls": of(timed, "edit_calls"), "change outside": of(timed, "edit_change_outside")}
            )
    return pd.DataFrame(out)


def sequence(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method and number of edits in a row: drift from the dense run of the same edits, and what that edit cost."""
    rows = own_rows(table)
    rows = rows[(rows["experiment"] == "sige_sequential") & rows["metric"].str.contains(r"\.\d+$")]
    value = _values(rows, [])
    numbers = sorted({int(metric.rsplit(".", 1)[1]) for metric in rows["metric"]})
    columns = {"area (%)": "sequence_area", "drift": "drift", "drift in all strokes": "drift_in_mask"}
    columns |= {"PSNR (dB)": "drift_psnr", "MACs (G)": "sequence_macs", "fewer": "sequence_macs_ratio"}
    columns |= {"seconds": "sequence_seconds"}
    out = []
    for method in dict.fromkeys(rows["method"]):
        for number in numbers:
            found = {name: value.get((method, f"{metric}.{number}"), math.nan) for name, metric in columns.items()}
            out.append({"method": method, "edit": number} | found)
    return pd.DataFrame(out)


def _values(rows: pd.DataFrame, keys: list[str]) -> dict[tuple, float]:
    """(*keys, method, metric) -> the newest value."""
    return {
        (*(getattr(row, key) for key in keys), row.method, row.metric): row.value
        for row in rows[[*keys, "method", "metric", "value"]].itertuples()
    }


def _printed(targets: Targets, prefix: str) -> dict[str, float]:
    """Column -> value of a row of the paper; {} for a row that it does not have."""
    cells = (targets.cells[name] for name in targets.cells if name.startswith(f"{prefix}/"))
    return {cell.id.rsplit("/", 1)[1]: cell.value for cell in cells if cell.value is not None}
