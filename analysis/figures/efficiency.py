"""SIGE's efficiency bars: MACs and time of one church DDPM step at a 1.2 % edit, original against incremental."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import HEADLINE_MODEL, SMALL_EDITS, first_edit, in_order, measured, newest_device, pivot

_SHOWN = ("dense", "dense_channels_last", "sige_public", "sige", "pixel", "incremental")
_PANELS = {"macs": "MACs of one step (G)", "latency": "time of one step (ms)"}
_PAPER = {"macs": ("macs", "macs_ratio"), "RTX 3090": ("ms_3090", "x_3090"), "M1 Pro CPU": ("s_m1cpu", "x_m1cpu")}
_COLUMNS = ["panel", "series", "method", "value", "unit", "lo", "hi", "ratio", "ratio_lo", "ratio_hi"]
_COLUMNS += ["baseline", "edit", "device", "source", "note", "run_id"]


@figure(
    "sige-efficiency",
    items=["efficiency"],
    caption="MACs and time of one step of the church DDPM at a 1.2 % edit. Solid: measured here. Hatched: the paper's.",
    order=10,
)
def draw(table, targets):
    """Return the figure and its numbers: measured bars with 95 % intervals and ratios, the paper's bars hatched."""
    from matplotlib import pyplot

    frame = _numbers(table, targets)
    drawing = pyplot.figure(figsize=(11, 4.3))
    grid = drawing.add_gridspec(2, 3, width_ratios=[1, 1, 0.6], wspace=0.66, hspace=0.75)
    grid.update(left=0.135, right=0.955, top=0.84, bottom=0.16)
    macs, time = drawing.add_subplot(grid[:, 0]), drawing.add_subplot(grid[:, 1])
    _bars(macs, frame[frame["panel"] == "macs"], _PANELS["macs"], "MACs of " + HEADLINE_MODEL)
    _bars(time, frame[frame["panel"] == "latency"], _PANELS["latency"], "times of " + HEADLINE_MODEL)
    for place, panel in enumerate(("RTX 3090", "M1 Pro CPU")):
        rows = frame[frame["panel"] == panel]
        unit = rows["unit"].iloc[0] if len(rows) else "ms"
        axes = drawing.add_subplot(grid[place, 2])
        _bars(axes, rows, f"{panel} ({unit})", "the paper's values")
        if place == 0:
            axes.set_title("Time, in the paper")
    macs.set_title("Computation")
    here = frame[(frame["panel"] == "latency") & (frame["series"] == "measured")]
    time.set_title("Time, measured on this machine" if len(here) else "Time")
    _heading(drawing, frame, here)
    return drawing, frame


def _numbers(table, targets) -> pd.DataFrame:
    rows = measured(table)
    rows = rows[rows["dtype"] == "float32"]
    edit, device = first_edit(rows, SMALL_EDITS), newest_device(rows)
    wide = pivot(rows[(rows["edit"] == edit)], ["macs", "macs_ratio"]) if edit else None
    out = [] if wide is None else _measured(wide, "macs", "macs_ratio", "G", edit, "")
    if edit:
        timed = pivot(rows[(rows["edit"] == edit) & (rows["device"] == device)], ["latency", "speedup", "gate"])
        out += _measured(timed, "latency", "speedup", "ms", edit, device)
    for panel, (column, ratio) in _PAPER.items():
        for row, method in (("ddpm-original", "dense"), ("ddpm-ours", "sige")):
            cell = targets.cells.get(f"sige/efficiency/{row}/{column}")
            if cell is None or cell.value is None:
                continue
            label = targets.cells.get(f"sige/efficiency/{row}/{ratio}")
            out.append(
                dict.fromkeys(_COLUMNS, "")
                | {"panel": panel, "series": "paper", "method": method, "value": cell.value, "unit": cell.unit}
                | {"lo": math.nan, "hi": math.nan, "ratio": label.value if label else math.nan}
                | {"ratio_lo": math.nan, "ratio_hi": math.nan, "baseline": "dense" if label else ""}
                | {"edit": cell.edit, "source": cell.source, "note": cell.note}
            )
    return pd.DataFrame(out, columns=_COLUMNS)


def _measured(wide, metric: str, ratio: str, unit: str, edit: str, device: str) -> list[dict]:
    out = []
    for method in in_order(wide.index.get_level_values("method")):
        row = wide.xs(method, level="method").iloc[-1]
        twice = metric == "macs" and method == "dense_channels_last"  # the layout changes no MACs
        if method not in _SHOWN or twice or math.isnan(row[metric]):
            continue
        red = row.get("gate") == 0
        out.append(
            {"panel": metric, "series": "measured", "method": method, "value": row[metric], "unit": unit}
            | {"lo": row[f"{metric}.lo"], "hi": row[f"{metric}.hi"], "ratio": row[ratio]}
            | {"ratio_lo": row[f"{ratio}.lo"], "ratio_hi": row[f"{ratio}.hi"], "baseline": row[f"{ratio}.baseline"]}
            | {"edit": edit, "device": device, "source": "", "run_id": row[f"{metric}.run_id"]}
            | {"note": "correctness gate red: no speed-up" if red else ""}
        )
    return out


def _bars(axes, rows: pd.DataFrame, label: str, what: str) -> None:
    axes.set_xlabel(label)
    if rows.empty:
        style.missing(axes, what)
        return
    order = _with_paper_in_place(rows)
    longest = rows["value"].max()
    for place, (_, row) in enumerate(order.iterrows()):
        paper = row["series"] == "paper"
        tint = style.colour(row["method"])
        look = {"facecolor": "white", "hatch": style.PAPER_HATCH, "edgecolor": tint} if paper else {"color": tint}
        axes.barh(place, row["value"], height=0.68, linewidth=1.0, **look)
        if not (math.isnan(row["lo"]) or math.isnan(row["hi"])):
            ends = [[max(row["value"] - row["lo"], 0)], [max(row["hi"] - row["value"], 0)]]
            axes.errorbar(row["value"], place, xerr=ends, color="#111111", capsize=2.5, linewidth=1)
        end = max(row["value"], row["hi"] if not math.isnan(row["hi"]) else 0)
        axes.text(end + 0.025 * longest, place, _text(row), va="center", fontsize=8.5)
    if label == _PANELS["macs"] and not (rows["series"] == "measured").any():
        text = f"not in this table:\n{what}, measured"
        axes.text(0.98, 0.5, text, transform=axes.transAxes, ha="right", va="center", color=style.MISSING)
    if not (rows["series"] == "measured").any():
        names = ["original" if row["method"] == "dense" else "SIGE" for _, row in order.iterrows()]
    else:
        names = [_bar_name(row) for _, row in order.iterrows()]
    axes.set_yticks(range(len(order)), names)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.36 * longest)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _with_paper_in_place(rows: pd.DataFrame) -> pd.DataFrame:
    """Original bars first, the paper's bar after the measured ones it belongs with."""
    rank = {method: place for place, method in enumerate(_SHOWN)}
    keys = [(rank.get(row["method"], 99), row["series"] == "paper") for _, row in rows.iterrows()]
    return rows.iloc[sorted(range(len(rows)), key=keys.__getitem__)]


def _bar_name(row) -> str:
    if row["series"] == "paper":
        return "paper: original" if row["method"] == "dense" else "paper: SIGE"
    return style.name(row["method"])


def _text(row) -> str:
    digits = 4 if row["series"] == "measured" else 3
    value = f"{row['value']:.{digits}g}" if row["value"] < 1000 else f"{row['value']:,.0f}"
    if row["note"].startswith("correctness gate red"):
        return f"{value}  gate red"
    if math.isnan(row["ratio"]):
        return value
    digits = 0 if row["ratio"] >= 10 else 2 if row["series"] == "measured" else 1
    ratio = f"{row['ratio']:.{digits}f}"
    return f"{value}  ({ratio}×)"


def _heading(drawing, frame: pd.DataFrame, here: pd.DataFrame) -> None:
    ours = frame[frame["series"] == "measured"]
    edit = ours["edit"].iloc[0] if len(ours) else "none measured"
    drawing.suptitle(
        "Church DDPM, one step at a 1.2 % edit", x=0.01, y=0.975, ha="left", fontsize=12, fontweight="bold"
    )
    parts = [f"Solid bars: measured here, edit {edit}." if len(ours) else "Nothing measured yet."]
    if len(here):
        against = [name for name in here["baseline"] if name]
        parts.append(
            f"Times on {here['device'].iloc[0]}, whiskers 95 %; speed-up against {style.name(against[0])}."
            if against
            else ""
        )
    parts.append("Hatched bars: the paper's values.")
    style.footnote(drawing, " ".join(part for part in parts if part))
