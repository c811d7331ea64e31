"""Speed-up of every network against the size of the edit, and how much of the MACs saved becomes time saved."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import in_order, networks, newest_device, own_rows, pivot, reference_engine

_METRICS = ["speedup", "efficiency", "macs_ratio", "gate"]
_COLUMNS = ["network", "series", "method", "edit", "edit_area", "speedup", "lo", "hi", "efficiency", "macs_ratio"]
_COLUMNS += ["device", "run_id"]
_SLOWEST = 1 / 1.10  # the bar at a full edit: never slower than 1.10 times dense
_WANTED = 0.8  # the bar of efficiency at the smallest edit
_ACROSS = 4


@figure(
    "sige-networks",
    items=[],
    caption="Speed-up of one step against the best dense layout, a panel a network; last panel: efficiency at the smallest edit.",
    order=25,
)
def draw(table, targets):
    """Return the figure and its numbers: lines with 95 % intervals; dotted: SIGE's own engine on a like machine."""
    from matplotlib import pyplot

    frame = _numbers(table)
    models = list(dict.fromkeys(frame["network"]))
    down = max(1, math.ceil((len(models) + 2) / _ACROSS))  # the last panel, and the place of its names left of it
    drawing, panels = pyplot.subplots(down, _ACROSS, figsize=(11, 1.1 + 2.6 * down), squeeze=False)
    edge = 0.55 / (1.1 + 2.6 * down)
    drawing.subplots_adjust(left=0.06, right=0.985, top=1 - edge * 1.5, bottom=2.1 * edge, wspace=0.32, hspace=0.5)
    if not models:
        style.missing(panels[0][0], "timed steps of any network")
    flat = list(panels.flat)
    for axes, model in zip(flat, models, strict=False):
        _panel(axes, frame[frame["network"] == model], model)
    if models:
        _efficiency(flat[-1], frame, models)
    for axes in flat[len(models) or 1 : -1] if models else flat[1:]:
        axes.set_visible(False)
    style.legend_below(drawing, flat[: len(models)])
    drawing.suptitle(
        "Speed-up against the size of the edit", x=0.01, y=0.985, ha="left", fontsize=12, fontweight="bold"
    )
    devices = [device for device in dict.fromkeys(frame[frame["series"] == "measured"]["device"]) if device]
    note = f"Times on {devices[0]}. " if devices else ""
    style.footnote(
        drawing, note + "Dashed: 1.10 times slower than dense. Dotted: SIGE's own engine, shipped rows, another CPU."
    )
    return drawing, frame


def _numbers(table) -> pd.DataFrame:
    rows = own_rows(table)
    device = newest_device(rows)
    timed = rows["metric"].isin(["speedup", "efficiency"])
    rows = rows[(~timed | (rows["device"] == device)) & (rows["dtype"] == "float32")]
    out = []
    for model in networks(rows[rows["metric"] == "speedup"]):
        wide = pivot(rows[rows["model"] == model], _METRICS).reset_index()
        wide = wide[wide["speedup"].notna() & ~wide["method"].str.startswith("dense")]
        for row in wide.to_dict("records"):
            out.append(
                {"network": model, "series": "measured", "method": row["method"], "edit": row["edit"]}
                | {"edit_area": row["edit_area"], "speedup": row["speedup"], "lo": row["speedup.lo"]}
                | {"hi": row["speedup.hi"], "efficiency": row["efficiency"], "macs_ratio": row["macs_ratio"]}
                | {"device": device, "run_id": row["speedup.run_id"]}
            )
        for edit, area in dict(zip(wide["edit"], wide["edit_area"], strict=True)).items():
            found = reference_engine(table, model, edit)
            if "speedup" in found:
                out.append(
                    {
                        "network": model,
                        "series": "shipped",
                        "method": "reference_engine",
                        "edit": edit,
                        "edit_area": area,
                    }
                    | {"speedup": found["speedup"], "lo": math.nan, "hi": math.nan, "macs_ratio": found["macs_ratio"]}
                    | {"efficiency": found["speedup"] / found["macs_ratio"], "device": "", "run_id": ""}
                )
    return pd.DataFrame(out, columns=_COLUMNS)


def _panel(axes, rows: pd.DataFrame, model: str) -> None:
    axes.set_title(model)
    for method in in_order(rows["method"]):
        own = rows[rows["method"] == method].groupby("edit_area", as_index=False)[["speedup", "lo", "hi"]].median()
        own = own.sort_values("edit_area")
        look = {"marker": "o", "markersize": 3.5, "linewidth": 1.6}
        if method == "reference_engine":
            look = {"marker": "x", "markersize": 4, "linewidth": 1.2, "linestyle": ":"}
        tint = style.colour(method)
        axes.plot(100 * own["edit_area"], own["speedup"], color=tint, label=style.name(method), **look)
        if own["lo"].notna().any():
            axes.fill_between(100 * own["edit_area"], own["lo"], own["hi"], color=tint, alpha=0.18, linewidth=0)
    axes.axhline(_SLOWEST, color="#999999", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, 120)
    style.plain_log(axes)
    axes.set_xlabel("edited area (%)")
    axes.set_ylabel("speed-up")
    axes.grid(True, which="major")


def _efficiency(axes, frame: pd.DataFrame, models: list[str]) -> None:
    """Grouped bars: speed-up over MACs ratio at the smallest edit of each network."""
    axes.set_title("efficiency, smallest edit")
    methods = in_order(frame["method"])
    high = 0.8 / len(methods)
    for place, model in enumerate(models):
        rows = frame[frame["network"] == model]
        smallest = rows[rows["edit_area"] == rows["edit_area"].min()].set_index("method")["efficiency"]
        for number, method in enumerate(methods):
            if method in smallest.index:
                axes.barh(
                    place + high * (number - (len(methods) - 1) / 2), smallest[method], high, color=style.colour(method)
                )
    axes.axvline(_WANTED, color="#999999", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(models)), models, fontsize=7)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlabel("speed-up / MACs ratio")
    axes.grid(axis="x")
