"""SIGE's efficiency chart with all of its networks: MACs of one step at a 1.2 % edit, measured bars beside the printed ones."""

import math

import pandas as pd

from sige.analysis.figures import figure, style
from sige.analysis.selection import own_rows, reference_engine

# Network -> its panel's title, the edits it may be counted at (best first), and its rows in the paper's chart.
_PANELS = {
    "ddpm_church256": ("DDPM", ("church-432", "brush-1.2"), "ddpm-original", "ddpm-ours"),
    "pd_church256": ("Progressive Distillation", ("church-432", "brush-1.2"), "pd-original", "pd-ours"),
    "gaugan_cityscapes": ("GauGAN", ("cityscapes-pair",), "gaugan-original", "gaugan-ours"),
    "gan_compression": ("GAN Compression", ("cityscapes-pair",), "", "gancomp-ours"),
}
_METHODS = ("dense", "sige_public", "sige", "incremental")
_COLUMNS = ["network", "series", "method", "edit", "value", "unit", "ratio", "source", "run_id"]


@figure(
    "sige-efficiency-networks",
    items=["efficiency"],
    caption="MACs of one step of SIGE's four networks at a 1.2 % edit. Solid: measured here. Hatched: the paper's.",
    order=15,
)
def draw(table, targets):
    """Return the figure and its numbers: a panel a network; ratios are against the network's own dense model."""
    from matplotlib import pyplot

    frame = _numbers(table, targets)
    drawing, panels = pyplot.subplots(2, 2, figsize=(11, 5.2))
    drawing.subplots_adjust(left=0.135, right=0.97, top=0.86, bottom=0.12, wspace=0.42, hspace=0.5)
    for axes, (model, (title, *_)) in zip(panels.flat, _PANELS.items(), strict=True):
        rows = frame[frame["network"] == model]
        here = rows[rows["series"] == "measured"]
        axes.set_title(title + (f" ({here['edit'].iloc[-1]})" if len(here) else ""))
        _bars(axes, rows, model)
    for axes in panels[-1]:
        axes.set_xlabel("MACs of one step (G)")
    drawing.suptitle("MACs at a 1.2 % edit, by network", x=0.01, y=0.975, ha="left", fontsize=12, fontweight="bold")
    style.footnote(
        drawing, "Solid bars: measured here. Hatched bars: the paper's. In brackets: times fewer than the dense model."
    )
    return drawing, frame


def _numbers(table, targets) -> pd.DataFrame:
    rows = own_rows(table)
    rows = rows[(rows["metric"] == "macs") & (rows["dtype"] == "float32")]
    out = []
    for model, (_, edits, original, ours) in _PANELS.items():
        own = rows[rows["model"] == model]
        edit = next((name for name in edits if name in set(own["edit"])), "")
        own = own[own["edit"] == edit].drop_duplicates("method", keep="last").set_index("method")
        dense = own["value"].get("dense", math.nan)
        for method in _METHODS:
            if method in own.index:
                row = own.loc[method]
                out.append(
                    {"network": model, "series": "measured", "method": method, "edit": edit, "value": row["value"]}
                    | {"unit": "G", "ratio": dense / row["value"], "source": "", "run_id": row["run_id"]}
                )
        for name, method in ((original, "dense"), (ours, "sige")):
            cell = targets.cells.get(f"sige/efficiency/{name}/macs")
            if cell is None or cell.value is None:
                continue
            base = targets.cells.get(f"sige/efficiency/{original}/macs")
            base = base if base is not None else targets.cells["sige/edit-size/gancomp-original/macs"]
            out.append(
                {"network": model, "series": "paper", "method": method, "edit": cell.edit, "value": cell.value}
                | {"unit": cell.unit, "ratio": base.value / cell.value, "source": cell.source, "run_id": ""}
            )
        out += _peer(table, model)
    return pd.DataFrame(out, columns=_COLUMNS)


def _peer(table, model: str) -> list[dict]:
    """The reference engine at a rectangle of the same area, where such a row ships."""
    found = reference_engine(table, model, "rectangle-1.2")
    if "macs" not in found:
        return []
    row = {"network": model, "series": "shipped", "method": "reference_engine", "edit": "rectangle-1.2", "unit": "G"}
    return [row | {"value": found["macs"], "ratio": found["macs_ratio"], "source": "shipped", "run_id": ""}]


def _bars(axes, rows: pd.DataFrame, model: str) -> None:
    rows = rows[rows["series"] != "shipped"]  # another edit: in the numbers, not in the picture
    rank = {method: place for place, method in enumerate(_METHODS)}
    order = sorted(range(len(rows)), key=lambda i: (rank[rows.iloc[i]["method"]], rows.iloc[i]["series"] == "paper"))
    names = []
    longest = rows["value"].max() if len(rows) else 1.0
    for place, index in enumerate(order):
        row = rows.iloc[index]
        paper = row["series"] == "paper"
        tint = style.colour(row["method"])
        look = {"facecolor": "white", "hatch": style.PAPER_HATCH, "edgecolor": tint} if paper else {"color": tint}
        axes.barh(place, row["value"], height=0.68, linewidth=1.0, **look)
        ratio = f"  ({row['ratio']:.1f}×)" if row["ratio"] > 1.005 else ""
        axes.text(row["value"] + 0.02 * longest, place, f"{row['value']:.4g}{ratio}", va="center", fontsize=8.5)
        name = "original" if row["method"] == "dense" else "SIGE"
        names.append(f"paper: {name}" if paper else style.name(row["method"]))
    if not (rows["series"] == "measured").any():
        text = f"not in this table:\nMACs of {model}"
        axes.text(0.98, 0.2, text, transform=axes.transAxes, ha="right", va="center", color=style.MISSING, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * longest)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
