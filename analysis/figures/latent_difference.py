"""FISEdit's Fig. 3 and the second figure of its appendix: where and how far two prompts' latents lie apart, step by step."""

import re

import numpy as np
import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import own_rows

_SEARCHES = {"mask_search": "without control", "mask_search_controlled": "with control"}
_TILES = (1, 2, 5, 10, 20, 50)
_COLUMNS = ["edit", "method", "metric", "step", "value", "map", "run_id"]
_MAP = re.compile(r"map (\d+)x(\d+): ([0-9a-f]+)")


@figure(
    "fisedit-latent-difference",
    items=["fig3", "app2"],
    caption="Latent difference of two prompts by step, and the mask found in the first ten, without and with attention control "
    "(small pipeline, random weights).",
    order=62,
)
def draw(table, targets):
    """Return the figure and its numbers: for each pair a row of tiles and its mask without and with control; below, the curves."""
    from matplotlib import pyplot

    frame = _numbers(table)
    edits = list(dict.fromkeys(frame["edit"]))
    shown = edits[:1]
    drawing = pyplot.figure(figsize=(11, 6.2))
    if not edits:
        style.missing(drawing.subplots(), "latent differences of two prompts (experiment fisedit_fig3)")
        return drawing, frame
    top, bottom = drawing.subfigures(2, 1, height_ratios=(1.35, 1))
    panels = top.subplots(2, len(_TILES) + 1)
    top.subplots_adjust(left=0.1, right=0.99, top=0.83, bottom=0.03, wspace=0.08, hspace=0.12)
    for line, (method, name) in zip(panels, _SEARCHES.items(), strict=True):
        own = frame[(frame["edit"] == shown[0]) & (frame["method"] == method)]
        _tiles(line, own, name, titled=method == "mask_search")
    axes = bottom.subplots()
    bottom.subplots_adjust(left=0.1, right=0.78, top=0.97, bottom=0.22)
    _curves(axes, frame, edits)
    drawing.suptitle(
        f"How far two prompts lie apart, by step ({shown[0].removeprefix('prompt-')})",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    style.footnote(drawing, "Each tile is on a scale of its own. Shaded: the steps from which the mask is found.")
    return drawing, frame


def _numbers(table) -> pd.DataFrame:
    rows = own_rows(table)
    rows = rows[(rows["experiment"] == "fisedit_fig3") & rows["method"].isin(_SEARCHES)]
    rows = rows.drop_duplicates(["edit", "method", "metric"], keep="last")
    out = []
    for row in rows.itertuples():
        metric, _, step = row.metric.partition(".")
        step = int(step) if step else 0
        out.append((row.edit, row.method, metric, step, row.value, row.reason, row.run_id))
    return pd.DataFrame(out, columns=_COLUMNS)


def _picture(text: str) -> np.ndarray | None:
    """The map that a row's reason holds, (h, w) of 0 to 15; None where it holds none."""
    found = _MAP.fullmatch(text)
    return (
        None
        if found is None
        else np.array([int(digit, 16) for digit in found[3]]).reshape(int(found[1]), int(found[2]))
    )


def _tiles(line, own, name, titled) -> None:
    maps = {(row.metric, row.step): _picture(row.map) for row in own.itertuples()}
    for axes, step in zip(line, _TILES, strict=False):
        _tile(axes, maps.get(("latent_difference", step)), f"step {step}" if titled else "")
    _tile(line[-1], maps.get(("prompt_mask", 0)), "mask" if titled else "", "gray")
    line[0].set_ylabel(name)


def _tile(axes, picture, title, colours="magma") -> None:
    if picture is None:
        style.missing(axes, title or "this step")
        return
    axes.imshow(picture, cmap=colours, interpolation="nearest", vmin=0, vmax=15)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def _curves(axes, frame, edits) -> None:
    tints = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
    for edit, tint in zip(edits, tints, strict=False):
        for method, name in _SEARCHES.items():
            own = frame[(frame["edit"] == edit) & (frame["method"] == method) & (frame["metric"] == "latent_distance")]
            look = "-" if method == "mask_search" else "--"
            label = f"{edit.removeprefix('prompt-')}, {name}"
            own = own.sort_values("step")
            axes.plot(own["step"], own["value"], look, color=tint, label=label, linewidth=1.4)
    axes.axvspan(1, 10, color="#eeeeee", zorder=0)
    axes.set_xlabel("step")
    axes.set_ylabel("distance of the latents (relative L2)")
    axes.set_yscale("log")
    style.plain_log(axes)
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
