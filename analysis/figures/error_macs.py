"""Error against MACs: what each method gives up for what it saves, one panel an edit size."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import HEADLINE_MODEL, MIDDLE_EDITS, SMALL_EDITS, first_edit, in_order, measured, pivot

_ERRORS = {"error_rel_l2_in_mask": "relative L2 inside the mask", "error_rel_l2": "relative L2, whole map"}
_LARGE_EDITS = ("brighten-30", "brush-30", "rectangle-30")
_COLUMNS = ["edit", "edit_area", "method", "dtype", "macs", *_ERRORS, "gate", "run_id"]


@figure(
    "sige-error-macs",
    items=[],
    caption="Error against the dense model and MACs of one church DDPM step. Lower left is better.",
    order=30,
)
def draw(table, targets):
    """Return the figure and its numbers: one point a method, log axes, up to three edit sizes."""
    from matplotlib import pyplot

    frame = _numbers(table)
    edits = [
        edit for edit in (first_edit(frame, wanted) for wanted in (SMALL_EDITS, MIDDLE_EDITS, _LARGE_EDITS)) if edit
    ]
    drawing, panels = pyplot.subplots(1, max(1, len(edits)), figsize=(11, 4.0), squeeze=False)
    drawing.subplots_adjust(left=0.07, right=0.985, top=0.82, bottom=0.25, wspace=0.26)
    if not edits:
        style.missing(panels[0][0], f"errors of {HEADLINE_MODEL} at a 1.2, 15.5 or 30 % edit")
    for axes, edit in zip(panels[0], edits, strict=False):
        _panel(axes, frame[frame["edit"] == edit], edit)
    panels[0][0].set_ylabel("error against the dense model")
    style.legend_below(drawing, panels[0])
    drawing.suptitle("Error against computation", x=0.01, y=0.975, ha="left", fontsize=12, fontweight="bold")
    note = (
        "Filled: relative L2 inside the mask. Hollow: over the whole map. Lower left is better. Crossed out: gate red. "
    )
    style.footnote(drawing, note + "The papers print no such front.")
    return drawing, frame


def _numbers(table) -> pd.DataFrame:
    wide = pivot(measured(table), ["macs", *_ERRORS, "gate"]).reset_index()
    wide = wide[wide["macs"].notna() & wide[list(_ERRORS)].notna().any(axis=1)]
    return wide.assign(run_id=wide["macs.run_id"])[_COLUMNS].reset_index(drop=True)


def _panel(axes, rows: pd.DataFrame, edit: str) -> None:
    for method in in_order(rows["method"]):
        row = rows[rows["method"] == method].iloc[-1]
        tint = style.colour(method)
        inside, whole = (row[name] for name in _ERRORS)
        both = [value for value in (inside, whole) if value > 0 and not math.isnan(value)]
        if not both:
            continue
        axes.plot([row["macs"]] * len(both), both, color=tint, linewidth=1, alpha=0.5)
        axes.scatter(row["macs"], both[0], s=55, color=tint, zorder=3, label=style.name(method))
        if len(both) > 1:
            axes.scatter(row["macs"], both[1], s=40, facecolor="white", edgecolor=tint, linewidth=1.4, zorder=3)
        if row["gate"] == 0:
            axes.scatter(row["macs"], both[0], marker="x", s=90, color="#b00020", zorder=4)
    area = rows["edit_area"].iloc[0]
    axes.set_title(f"{edit}" + ("" if math.isnan(area) else f" ({100 * area:.4g} %)"))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.12)
    style.plain_log(axes)
    axes.set_xlabel("MACs of one step (G)")
    axes.grid(True, which="major")
