"""FISEdit's Table 3 as a picture: what a whole edit costs by each method, at full size and by the clock on the small pipeline."""

from sige.analysis import editing_tables
from sige.analysis.figures import figure, style

_OURS = ("fisedit_session", "fisedit_session_radical", "incremental_session")


@figure(
    "fisedit-whole-edits",
    items=["table3"],
    caption="Whole edits by every method. Left: mean MACs of a step of Stable Diffusion 2.1, all of the edit's calls counted. "
    "Right: time of the edit on the small pipeline. Hatched: what the paper prints, of one step.",
    order=61,
)
def draw(table, targets):
    """Return the figure and its numbers: a bar a method, those of the engine once for each size of edit."""
    from matplotlib import pyplot

    frame = editing_tables.methods(table, targets)
    drawing, panels = pyplot.subplots(1, 2, figsize=(11, 5.6), sharey=True)
    drawing.subplots_adjust(left=0.24, right=0.97, top=0.86, bottom=0.12, wspace=0.08)
    drawing.suptitle("What a whole edit costs", x=0.01, ha="left", fontweight="bold")
    names = []
    for place, row in enumerate(frame.itertuples(index=False)):
        row = dict(zip(frame.columns, row, strict=True))
        size = f", {row['area (%)']:.0f} % edit" if row["method"] in _OURS else ""
        names.append(row["method"].replace("_", " ") + size)
        tint = {"incremental_session": "#d55e00"}.get(row["method"], "#cc79a7" if row["method"] in _OURS else "#7f7f7f")
        panels[0].barh(place, row["MACs of a step, mean (G)"], height=0.55, color=tint)
        panels[0].barh(
            place,
            row["paper (G)"],
            height=0.82,
            facecolor="none",
            edgecolor=style.PAPER,
            hatch=style.PAPER_HATCH,
            linewidth=0.6,
        )
        panels[1].barh(place, row["whole edit, small pipeline (s)"], height=0.55, color=tint)
    for axes, title, unit in zip(
        panels, ("MACs at full size", "Time, small pipeline"), ("G a step, mean over the edit", "seconds"), strict=True
    ):
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        if frame.empty:
            style.missing(axes, "whole edits (experiment fisedit_table3)")
    if names:
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
    style.footnote(
        drawing, "The making of the original is left out, but for Prompt-to-Prompt, which makes both pictures at once."
    )
    return drawing, frame
