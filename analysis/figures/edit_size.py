"""MACs, time and speed-up against the size of the edit: our methods as lines, the paper's points hollow."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import HEADLINE_MODEL, in_order, measured, newest_device, pivot

_PANELS = {
    "macs": "MACs of one step (G)",
    "latency": "time of one step (ms)",
    "speedup": "speed-up against the best dense",
}
_SERIES = ("brush", "church")  # lines run over these edits; other generated kinds are faint points
_PAPER_TABLES = ("edit-size", "teaser", "caching", "efficiency")
_PAPER_METRICS = {"macs": "any", "speedup": "rtx3090"}
_COLUMNS = [
    "panel",
    "series",
    "method",
    "edit",
    "edit_area",
    "value",
    "unit",
    "lo",
    "hi",
    "baseline",
    "device",
    "source",
]


@figure(
    "sige-edit-size",
    items=["edit-size", "caching-overview", "teaser"],
    caption="Cost of one church DDPM step against the size of the edit. Lines: measured. Hollow: the paper's points.",
    order=20,
)
def draw(table, targets):
    """Return the figure and its numbers; the dense model is the horizontal line of each panel."""
    from matplotlib import pyplot

    frame = _numbers(table, targets)
    drawing, panels = pyplot.subplots(1, 3, figsize=(11, 4.1))
    drawing.subplots_adjust(left=0.065, right=0.985, top=0.82, bottom=0.26, wspace=0.3)
    for axes, (panel, label) in zip(panels, _PANELS.items(), strict=True):
        rows = frame[frame["panel"] == panel]
        axes.set_title(label)
        if not rows["series"].isin(["line", "other"]).any():
            style.missing(axes, f"{panel} of {HEADLINE_MODEL} at several edit sizes")
        else:
            _panel(axes, rows, panel)
    style.legend_below(drawing, panels)
    drawing.suptitle("Cost against the size of the edit", x=0.01, y=0.975, ha="left", fontsize=12, fontweight="bold")
    device = newest_device(measured(table))
    note = f"Times on {device}. " if device else ""
    text = "Lines: brush strokes and church samples; faint points: other generated edits. "
    text += "Hollow: the paper's points (speed-up on an RTX 3090). Dotted: shipped rows, another CPU."
    style.footnote(drawing, note + text)
    return drawing, frame


def _numbers(table, targets) -> pd.DataFrame:
    rows = measured(table)
    rows = rows[rows["dtype"] == "float32"]
    timed = rows[~rows["metric"].isin(["latency", "speedup"]) | (rows["device"] == newest_device(rows))]
    wide = pivot(timed, list(_PANELS)).reset_index()
    out = []
    for _, row in wide.iterrows():
        for panel, unit in (("macs", "G"), ("latency", "ms"), ("speedup", "x")):
            if not math.isnan(row[panel]):
                series = "line" if row["edit"].startswith(_SERIES) else "other"
                out.append(
                    {"panel": panel, "series": series, "method": row["method"], "edit": row["edit"], "unit": unit}
                    | {"edit_area": row["edit_area"], "value": row[panel], "lo": row[f"{panel}.lo"], "source": ""}
                    | {"hi": row[f"{panel}.hi"], "baseline": row[f"{panel}.baseline"]}
                    | {"device": newest_device(rows) if panel != "macs" else ""}
                )
    out += _shipped(table)
    for cell in targets.cells.values():
        wanted = cell.metric in _PAPER_METRICS and cell.hardware == _PAPER_METRICS[cell.metric]
        named = cell.id.split("/")[1] in _PAPER_TABLES and cell.model == HEADLINE_MODEL and cell.method == "sige"
        if cell.paper == "sige" and wanted and named and cell.value is not None:
            out.append(
                {"panel": cell.metric, "series": "paper", "method": "sige", "edit": cell.edit, "edit_area": cell.area}
                | {"value": cell.value, "unit": cell.unit, "lo": math.nan, "hi": math.nan, "baseline": "dense"}
                | {"device": cell.hardware if cell.hardware != "any" else "", "source": cell.source}
            )
    return pd.DataFrame(out, columns=_COLUMNS)


def _shipped(table) -> list[dict]:
    """SIGE's own engine as measured on another machine: its MACs and speed-ups, no milliseconds."""
    rows = table[(table["provenance"] == "shipped") & (table["model"] == HEADLINE_MODEL) & (table["reason"] == "")]
    rows = rows[(rows["method"] == "reference_engine") & rows["metric"].isin(["macs", "speedup"])]
    shown = ["metric", "method", "edit", "edit_area", "value", "unit", "lo", "hi", "baseline", "device"]
    return [
        {**row, "panel": row.pop("metric"), "series": "shipped", "source": "shipped"}
        for row in rows[shown].to_dict("records")
    ]


def _panel(axes, rows: pd.DataFrame, panel: str) -> None:
    ours = rows[rows["series"].isin(["line", "other"])]
    for method in in_order(ours["method"]):
        own = ours[ours["method"] == method]
        tint = style.colour(method)
        if method.startswith("dense"):
            if panel == "latency" or method == "dense":
                axes.axhline(own["value"].median(), color=tint, linewidth=1.4, linestyle="--", label=style.name(method))
            continue
        line = own[own["series"] == "line"].groupby("edit_area", as_index=False)[["value", "lo", "hi"]].median()
        line = line[line["edit_area"] > 0].sort_values("edit_area")
        axes.plot(
            100 * line["edit_area"],
            line["value"],
            color=tint,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label=style.name(method),
        )
        if line["lo"].notna().any():
            axes.fill_between(100 * line["edit_area"], line["lo"], line["hi"], color=tint, alpha=0.18, linewidth=0)
        other = own[(own["series"] == "other") & (own["edit_area"] > 0)]
        axes.scatter(100 * other["edit_area"], other["value"], color=tint, s=10, alpha=0.35, linewidth=0)
    peer = rows[rows["series"] == "shipped"].sort_values("edit_area")
    if len(peer):
        look = {
            "color": style.colour("reference_engine"),
            "linestyle": ":",
            "linewidth": 1.2,
            "marker": "x",
            "markersize": 4,
        }
        axes.plot(100 * peer["edit_area"], peer["value"], label="SIGE's engine (shipped)", **look)
    paper = rows[rows["series"] == "paper"]
    if len(paper):
        axes.scatter(
            100 * paper["edit_area"],
            paper["value"],
            s=42,
            facecolor="white",
            edgecolor=style.PAPER,
            linewidth=1.2,
            zorder=5,
            label="the paper's",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    style.plain_log(axes)
    axes.set_xlabel("edited area (% of the picture, final mask)")
    axes.grid(True, which="major")
