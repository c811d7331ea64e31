"""Each operator of the kernels against the machine's roofline, and against the best that is composed of PyTorch's own operators."""

from sige.analysis import kernel_tables
from sige.analysis.figures import figure, style

_KERNEL, _COMPOSED = "#d55e00", "#b0b0b0"


@figure(
    "sige-kernel-roofline",
    items=[],
    caption="Operators of the kernels, one by one: share of the machine's roofline, and speed-up over the best composed alternative.",
    order=60,
)
def draw(table, targets):
    """Return the figure and its numbers: the smallest edit's bars, 95 % intervals as lines."""
    from matplotlib import pyplot

    frame = kernel_tables.kernels(table)
    smallest = frame.loc[frame.groupby(["operator", "dtype"], sort=False)["area (%)"].idxmin()]
    high = 1.9 + 0.42 * max(4, len(smallest))
    drawing, (shares, speed) = pyplot.subplots(1, 2, figsize=(11, high), sharey=len(smallest) > 0)
    drawing.subplots_adjust(left=0.17, right=0.975, top=1 - 0.75 / high, bottom=1.1 / high, wspace=0.08)
    if smallest.empty:
        style.missing(shares, "timed operators of the kernels")
        style.missing(speed, "the same against composed operators")
    else:
        _shares(shares, smallest)
        _speed(speed, smallest)
        style.legend_below(drawing, [shares])
    drawing.suptitle(
        "Operators one by one", x=0.01, y=1 - 0.1 / high, ha="left", va="top", fontsize=12, fontweight="bold"
    )
    where = f"Edit {smallest['edit'].iloc[0]}, {smallest['device'].iloc[0]}. " if len(smallest) else ""
    note = "Attainable: the slower of copying an operator's bytes and multiplying its numbers at the machine's rates, same run."
    style.footnote(drawing, where + note)
    return drawing, frame


def _labels(rows) -> list[str]:
    mixed = rows["dtype"].nunique() > 1
    return [
        f"{row['operator']}{' ' + row['dtype'] if mixed else ''}\n{row['bound by'] and 'bound by ' + row['bound by']}"
        for _, row in rows.iterrows()
    ]


def _shares(axes, rows) -> None:
    axes.set_title("share of the roofline")
    places = list(range(len(rows)))
    lower, upper = rows["roofline share"] - rows["share from"], rows["share to"] - rows["roofline share"]
    axes.barh(
        [place - 0.19 for place in places], 100 * rows["roofline share"], 0.36, color=_KERNEL, label="our operator"
    )
    axes.errorbar(
        100 * rows["roofline share"],
        [place - 0.19 for place in places],
        xerr=[100 * lower.clip(lower=0), 100 * upper.clip(lower=0)],
        fmt="none",
        ecolor="#333333",
        elinewidth=1,
    )
    axes.barh(
        [place + 0.19 for place in places],
        100 * rows["share of the composed"],
        0.36,
        color=_COMPOSED,
        label="best composed of PyTorch's",
    )
    axes.axvline(100, color="#999999", linewidth=1, linestyle="--")
    axes.set_yticks(places, _labels(rows), fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("attainable time / measured time (%)")
    axes.grid(axis="x")


def _speed(axes, rows) -> None:
    axes.set_title("speed-up over the best composed")
    known = rows["speed-up"].notna()
    places = [place for place, there in enumerate(known) if there]
    rows = rows[known]
    lower, upper = rows["speed-up"] - rows["95 % from"], rows["to"] - rows["speed-up"]
    axes.errorbar(
        rows["speed-up"],
        places,
        xerr=[lower.clip(lower=0), upper.clip(lower=0)],
        fmt="o",
        color=_KERNEL,
        markersize=4,
        elinewidth=1.2,
    )
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        axes.annotate(
            row["best composed"].replace("_", " "),
            (row["to"], place),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
            color="#555555",
        )
    axes.axvline(1, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlim(left=0, right=max(1.5, 1.25 * rows["to"].max()) if len(rows) else 1.5)
    axes.set_xlabel("× (the fastest composed way is named)")
    axes.tick_params(axis="y", labelleft=False)
    axes.grid(axis="x")
