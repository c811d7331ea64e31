"""FISEdit's adaptive blocks over its 3,000 released masks: which shapes a search finds, and what its choices cost."""

import pandas as pd

from sige.analysis.figures import figure, style

_SIDES = (2, 4, 8, 16, 32)
_LEVELS = ("96", "48", "24", "12")
_MAPS = {"measured_whole": "by measured time of whole tiles", "gathered": "by the area gathered"}
_BARS = {
    "printed": "formula as printed: 2×2",
    "printed_without_2": "as printed, without 2: 4×4",
    "multiplications": "multiplications: 2×2",
    "gathered": "gathered area",
    "measured_whole": "measured, whole tiles",
    "measured": "measured, one position at a time",
}
_COLUMNS = ["panel", "level", "method", "shape", "value", "unit", "n", "device", "provenance"]


@figure(
    "fisedit-apsc",
    items=[],
    caption="Shapes that a search for adaptive blocks chooses for FISEdit's released masks, and the time of the level's convolutions.",
    order=60,
)
def draw(table, targets):
    """Return the figure and its numbers: a map of shares an objective and level; bars of measured time, all levels together."""
    from matplotlib import pyplot

    frame = _numbers(table)
    drawing = pyplot.figure(figsize=(11.5, 4.9))
    grid = drawing.add_gridspec(2, 5, width_ratios=[1, 1, 1, 1, 1.75], left=0.06, right=0.965, top=0.83, bottom=0.16)
    grid.update(wspace=0.42, hspace=0.55)
    for line, (method, words) in enumerate(_MAPS.items()):
        for column, level in enumerate(_LEVELS):
            axes = drawing.add_subplot(grid[line, column])
            _share_map(axes, frame, method, level)
            axes.set_title(f"{level}×{level}")
            if column == 0:
                axes.set_ylabel("rows")
                axes.annotate(words, (0, 1.32), xycoords="axes fraction", fontsize=8.5, color="#555555")
            if line == 1:
                axes.set_xlabel("columns")
    _time_bars(drawing.add_subplot(grid[:, 4]), frame)
    drawing.suptitle(
        "Adaptive blocks: which shapes a search chooses, and what they cost",
        x=0.01,
        y=0.975,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    style.footnote(drawing, _note(frame))
    return drawing, frame


def _numbers(table) -> pd.DataFrame:
    """Shares and times; rows measured here before shipped ones."""
    found = table[(table["status"] == "ok") & (table["experiment"] == "fisedit_blocks")]
    own = found[found["provenance"] == "measured"]
    found = own if len(own) else found
    out = []
    for _, row in found.iterrows():
        kind, _, rest = row["metric"].partition(".")
        level, _, shape = rest.partition(".")
        panel = {"block_share": "share", "block_ms": "time"}.get(kind)
        if panel:
            fields = {"panel": panel, "level": level, "shape": shape}
            out.append(fields | {name: row[name] for name in ("method", "value", "unit", "n", "device", "provenance")})
    return pd.DataFrame(out, columns=_COLUMNS)


def _share_map(axes, frame, method, level):
    rows = frame[(frame["panel"] == "share") & (frame["method"] == method) & (frame["level"] == level)]
    if rows.empty:
        style.missing(axes, "block_share")
        return
    shares = dict(zip(rows["shape"], rows["value"], strict=True))
    values = [[shares.get(f"{h}x{w}", 0.0) for w in _SIDES] for h in _SIDES]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value >= 0.5:
                axes.text(
                    x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 55 else "black"
                )
    axes.set_xticks(range(len(_SIDES)), _SIDES)
    axes.set_yticks(range(len(_SIDES)), _SIDES)
    axes.tick_params(length=0)


def _time_bars(axes, frame):
    rows = frame[(frame["panel"] == "time") & (frame["level"] == "all")].set_index("method")
    names = [name for name in _BARS if name in rows.index]
    axes.set_title("Time of all levels' convolutions")
    if not names:
        style.missing(axes, "block_ms")
        return
    seconds = [rows.loc[name, "value"] / 1e3 for name in names]
    axes.barh(
        range(len(names)),
        seconds,
        height=0.62,
        color=[style.colour("fisedit" if n.startswith("measured") else "dense") for n in names],
    )
    for place, (name, value) in enumerate(zip(names, seconds, strict=True)):
        axes.text(0, place - 0.42, _BARS[name], va="bottom", fontsize=8)
        axes.text(
            value + 0.01 * max(seconds), place, f"{value:.3g} s ({value / seconds[0]:.2f})", va="center", fontsize=8
        )
    axes.set_ylim(len(names) - 0.5, -0.75)
    axes.set_xlim(0, 1.32 * max(seconds))
    axes.set_yticks([])
    axes.set_xlabel("s a step (over the first bar's)")
    axes.grid(axis="x")


def _note(frame):
    if frame.empty:
        return "Share of the masks for which a shape costs least."
    row = frame.iloc[0]
    where = "measured here" if row["provenance"] == "measured" else f"shipped, measured on {row['device']}"
    what = f"Share in % of FISEdit's {row['n']} masks for which a shape costs least, by level of Stable Diffusion 2.1 at 768x768"
    return f"{what}; times are means over the masks; {where}."
