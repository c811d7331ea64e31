"""Choose rows of the long table for a figure or a table: what was measured here, the newest of each kind."""

import pandas as pd

DENSE_METHODS = ("dense", "dense_channels_last", "dense_bf16", "dense_compiled", "dense_graphs")
METHOD_ORDER = (*DENSE_METHODS, "reference_engine", "sige_public", "sige", "pixel")
METHOD_ORDER += (
    "fisedit_radical",
    "fisedit_full_kv",
    "fisedit_quality_radical",
    "fisedit",
    "incremental",
    "incremental_bf16",
)
NETWORK_ORDER = ("ddpm_church256", "pd_church128", "pd_church256", "gaugan_cityscapes", "gan_compression")
NETWORK_ORDER += ("gan_compression_small", "gaugan_ngf12", "sd14_unet", "sd14_unet_512", "sd_vae_encoder")
NETWORK_ORDER += ("sd_vae_encoder_512", "sd_vae_decoder", "sd_vae_decoder_512", "sd21_unet", "sd21_unet_512")
NETWORK_ORDER += ("sd_inpaint_unet", "instruct_pix2pix_unet", "sdxl_unet", "pixart_alpha", "sd3_medium", "flux_dev")
NETWORK_ORDER += ("flux_small", "sana")
HEADLINE_MODEL = "ddpm_church256"
SMALL_EDITS = ("church-432", "brush-1.2", "rectangle-1.2", "scattered-1.2")
MIDDLE_EDITS = ("church-423", "brush-15.5", "rectangle-15.5")


def own_rows(table: pd.DataFrame, stock_allocator: bool = False) -> pd.DataFrame:
    """Return the ok rows measured here, of every model, oldest first; see :func:`measured`.

    Rows of a forced kernel backend (hardware ``cpu+reference``) are another thing's numbers and are left out.
    """
    rows = table[(table["status"] == "ok") & (table["provenance"] == "measured")]
    rows = rows[~rows["hardware"].str.contains("+", regex=False)]
    rows = rows[rows["hardware"].str.endswith("-stock") == stock_allocator]
    return rows.sort_values("started", kind="stable")


def measured(table: pd.DataFrame, model: str = HEADLINE_MODEL, stock_allocator: bool = False) -> pd.DataFrame:
    """Return the ok rows measured here for one model, oldest first.

    Runs under the stock allocator (hardware ``*-stock``) inflate dense times; they are given only when asked for.
    """
    rows = own_rows(table, stock_allocator)
    return rows[rows["model"] == model]


def networks(rows: pd.DataFrame) -> list[str]:
    """Return the models of some rows in the order that figures and tables show them; layers and operators on their own are left out."""
    there = dict.fromkeys(rows[~rows["scope"].isin(["layer", "kernel"])]["model"])
    rank = {name: place for place, name in enumerate(NETWORK_ORDER)}
    return sorted(there, key=lambda name: (rank.get(name, len(rank)), name))


def reference_engine(table: pd.DataFrame, model: str, edit: str) -> dict[str, float]:
    """Return metric -> value of SIGE's own engine on a model and edit, from the shipped rows; {} where it was not run.

    It was run on rectangles; a generated edit of a label map is one too.
    """
    edit = edit.replace("labels-", "rectangle-")
    rows = table[(table["provenance"] == "shipped") & (table["method"] == "reference_engine")]
    rows = rows[(rows["model"] == model) & (rows["edit"] == edit) & ~rows["experiment"].str.endswith("stock-allocator")]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def newest_device(rows: pd.DataFrame) -> str:
    """Return the device of the newest timed row, else of the newest row, "" without rows."""
    timed = rows[rows["metric"] == "latency"]
    chosen = timed if len(timed) else rows
    return "" if chosen.empty else str(chosen.iloc[-1]["device"])


def first_edit(rows: pd.DataFrame, wanted: tuple[str, ...]) -> str:
    """Return the first of the ``wanted`` edits that has rows, "" if none has."""
    there = set(rows["edit"])
    return next((edit for edit in wanted if edit in there), "")


def pivot(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Return the newest row of each (edit, method, dtype) and metric: columns ``<metric>``, ``<metric>.lo``, ``.hi``, …

    Index: edit, method, dtype. Metrics without rows give columns of NaN. ``edit_area`` is kept.
    """
    keys = ["edit", "method", "dtype"]
    rows = rows[rows["metric"].isin(metrics)].drop_duplicates([*keys, "metric"], keep="last")
    wide = rows.drop_duplicates(keys, keep="last").set_index(keys)[["edit_area"]]
    for metric in metrics:
        one = rows[rows["metric"] == metric].set_index(keys)
        for column, name in (("value", metric), ("lo", f"{metric}.lo"), ("hi", f"{metric}.hi")):
            wide[name] = one[column]
        for column in ("run_id", "baseline", "reason"):
            wide[f"{metric}.{column}"] = one[column].reindex(wide.index).fillna("")
    return wide


def in_order(methods) -> list[str]:
    """Return method names in the order that figures and tables show them: dense first, ours last."""
    methods = list(dict.fromkeys(methods))
    rank = {name: place for place, name in enumerate(METHOD_ORDER)}
    return sorted(methods, key=lambda name: (rank.get(name, len(rank)), name))
