"""One look for all figures: a colour a method everywhere, the paper's own numbers hatched or hollow, little else."""

from contextlib import contextmanager

# Okabe and Ito's palette, safe for colour-blind readers; greys are dense baselines.
_METHODS = {
    "dense": ("#7f7f7f", "dense"),
    "dense_channels_last": ("#b0b0b0", "dense, channels last"),
    "dense_bf16": ("#c9c9c9", "dense, bfloat16"),
    "dense_compiled": ("#5a5a5a", "dense, compiled"),
    "dense_graphs": ("#3a3a3a", "dense, CUDA graphs"),
    "sige_public": ("#56b4e9", "SIGE (released)"),
    "sige": ("#0072b2", "SIGE (as printed)"),
    "pixel": ("#009e73", "pixel (no tiles)"),
    "incremental": ("#d55e00", "incremental (ours)"),
    "incremental_bf16": ("#e69f00", "incremental, bfloat16"),
    "incremental_graphs": ("#b8860b", "incremental, CUDA graphs"),
    "incremental_graphs_boxes": ("#8b6508", "incremental, CUDA graphs, boxes"),
    "fisedit": ("#cc79a7", "FISEdit"),
    "fisedit_radical": ("#8a4f7d", "FISEdit, radical"),
    "reference_engine": ("#000000", "SIGE's own engine"),
}
_SPARE = ("#882255", "#44aa99", "#999933", "#332288", "#117733")

PAPER = "#222222"
MISSING = "#a04000"
PAPER_HATCH = "////"
CLASSES = {
    "conv": "#0072b2",
    "gemm": "#56b4e9",
    "attention": "#cc79a7",
    "gather_scatter": "#d55e00",
    "norm": "#009e73",
    "pointwise": "#f0e442",
    "other": "#bbbbbb",
}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
}


@contextmanager
def context(salt: str):
    """Draw in this style, without a display; ``salt`` keeps the ids inside several SVGs of one page apart."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context({**_RC, "svg.hashsalt": salt}):
        yield


def colour(method: str) -> str:
    """Return the colour of a method, the same in every figure; unknown methods get a spare one by their name."""
    if method in _METHODS:
        return _METHODS[method][0]
    return _SPARE[sum(method.encode()) % len(_SPARE)]


def name(method: str) -> str:
    """Return a method's name for readers."""
    return _METHODS[method][1] if method in _METHODS else method.replace("_", " ")


def missing(axes, what: str) -> None:
    """Say in the picture that there is nothing to draw: ``what`` completes "not in this table: …"."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        f"not in this table:\n{what}",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=MISSING,
        fontsize=9,
        wrap=True,
    )


def footnote(figure, text: str) -> None:
    """Write small grey text along the lower edge of the figure."""
    figure.text(0.01, 0.012, text, fontsize=7.5, color="#555555", ha="left", va="bottom")


def plain_log(axes) -> None:
    """Label log axes with plain numbers, more of each decade the fewer decades there are, and no minor labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() != "log":
            continue
        span = limits[1] / max(limits[0], 1e-300)
        subs = (1, 1.5, 2, 3, 5, 7) if span < 12 else (1, 2, 5) if span < 300 else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def legend_below(figure, panels) -> None:
    """Put one legend for all ``panels`` under them: dense baselines first, the paper's points last."""
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(
        handles, key=lambda text: 2 if text.startswith("the paper") else 0 if text.startswith("dense") else 1
    )
    if names:
        shown = [handles[text] for text in names]
        figure.legend(
            shown, names, loc="lower center", ncols=8, bbox_to_anchor=(0.5, 0.055), columnspacing=1.1, handlelength=1.7
        )
