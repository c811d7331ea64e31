"""Where the time of one step goes: share of each class of operators, one stacked bar a method."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import HEADLINE_MODEL, SMALL_EDITS, first_edit, in_order, measured, newest_device, pivot

_METRICS = [f"time_share.{name}" for name in style.CLASSES]
_COLUMNS = ["edit", "device", "method", "dtype", "class", "share", "latency_ms", "run_id"]


@figure(
    "sige-time-share",
    items=[],
    caption="Time of one church DDPM step by class of operator, measured here.",
    order=40,
)
def draw(table, targets):
    """Return the figure and its numbers: shares on the left; on the right the same shares of the timed milliseconds."""
    from matplotlib import pyplot

    frame = _numbers(table)
    drawing, (shares, times) = pyplot.subplots(1, 2, figsize=(11, 3.9))
    drawing.subplots_adjust(left=0.165, right=0.97, top=0.88, bottom=0.28, wspace=0.08)
    if frame.empty:
        style.missing(shares, f"time by operator class of {HEADLINE_MODEL}")
        style.missing(times, "the same in milliseconds")
    else:
        _stack(shares, frame, frame["share"] * 100, "share of the step's own time (%)")
        if frame["latency_ms"].notna().any():
            _stack(times, frame, frame["share"] * frame["latency_ms"], "time of one step (ms), split by these shares")
            times.set_yticklabels([])
        else:
            style.missing(times, "timed steps to split")
        shares.set_xlim(0, 100)
        style.legend_below(drawing, [shares])
    drawing.suptitle("Where the time goes", x=0.01, y=0.975, ha="left", fontsize=12, fontweight="bold")
    where = f"Edit {frame['edit'].iloc[0]}, {frame['device'].iloc[0]}. " if len(frame) else ""
    style.footnote(drawing, where + "Shares come from one profiled pass, milliseconds from unprofiled rounds.")
    return drawing, frame


def _numbers(table) -> pd.DataFrame:
    rows = measured(table)
    shared = rows[rows["metric"].isin(_METRICS)]
    edit, device = first_edit(shared, SMALL_EDITS), newest_device(rows)
    rows = rows[(rows["edit"] == edit) & (rows["device"] == device)]
    wide = pivot(rows, [*_METRICS, "latency"]).reset_index()
    out = []
    for method in in_order(wide["method"]):
        row = wide[wide["method"] == method].iloc[-1]
        for kind, metric in zip(style.CLASSES, _METRICS, strict=True):
            if not math.isnan(row[metric]):
                out.append(
                    {"edit": edit, "device": device, "method": method, "dtype": row["dtype"], "class": kind}
                    | {"share": row[metric], "latency_ms": row["latency"], "run_id": row[f"{metric}.run_id"]}
                )
    return pd.DataFrame(out, columns=_COLUMNS)


def _stack(axes, frame: pd.DataFrame, lengths: pd.Series, label: str) -> None:
    methods = list(dict.fromkeys(frame["method"]))
    left = dict.fromkeys(methods, 0.0)
    for kind, tint in style.CLASSES.items():
        rows = frame[frame["class"] == kind]
        places = [methods.index(method) for method in rows["method"]]
        widths = lengths[rows.index].fillna(0.0)
        starts = [left[method] for method in rows["method"]]
        axes.barh(
            places,
            widths,
            left=starts,
            height=0.68,
            color=tint,
            edgecolor="white",
            linewidth=0.5,
            label=kind.replace("_", "/"),
        )
        for method, width in zip(rows["method"], widths, strict=True):
            left[method] += width
    axes.set_yticks(range(len(methods)), [style.name(method) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
