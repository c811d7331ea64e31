"""Edits in a row: drift from a dense run of the same edits, and what each costs."""

from sige.analysis import editing_tables
from sige.analysis.figures import figure, style

_METHODS = {
    "sequence_incremental": ("#d55e00", "-", "incremental (ours)"),
    "sequence_refreshed": ("#d55e00", "--", "ours, recorded anew every 3rd edit"),
    "sequence_cached": ("#e69f00", "-", "ours with cached normalisation"),
    "sequence_sige": ("#56b4e9", "-", "SIGE (released)"),
    "sequence_fisedit": ("#cc79a7", "-", "FISEdit"),
    "sequence_from_first": ("#7f7f7f", "-", "ours, each from the first picture"),
}


@figure(
    "sige-sequential",
    items=["sequential-edits"],
    caption="Edits in a row, each on top of the last: drift from a dense run of the same edits, and MACs of each edit (small "
    "pipeline, random weights).",
    order=63,
)
def draw(table, targets):
    """Return the figure and its numbers: drift on the left, MACs saved on the right."""
    from matplotlib import pyplot

    frame = editing_tables.sequence(table)
    drawing, panels = pyplot.subplots(1, 2, figsize=(11, 4.3))
    drawing.subplots_adjust(left=0.07, right=0.98, top=0.84, bottom=0.3, wspace=0.2)
    drawing.suptitle("Ten edits in a row", x=0.01, ha="left", fontweight="bold")
    what = (("drift in all strokes", "Drift from the dense run"), ("fewer", "MACs against a dense run"))
    units = ("relative L2 in everything edited so far", "times fewer")
    for axes, (column, title), unit in zip(panels, what, units, strict=True):
        axes.set_title(title)
        if frame.empty:
            style.missing(axes, "edits in a row (experiment sige_sequential)")
            continue
        for method, (tint, look, name) in _METHODS.items():
            own = frame[(frame["method"] == method) & frame[column].notna()]
            if len(own):
                axes.plot(
                    own["edit"], own[column], look, color=tint, label=name, marker="o", markersize=3, linewidth=1.4
                )
        axes.set_xlabel("edit")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
    handles, names = panels[1].get_legend_handles_labels() if not frame.empty else ([], [])
    if names:
        drawing.legend(handles, names, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0.04))
    return drawing, frame
