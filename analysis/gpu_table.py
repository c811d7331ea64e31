"""Time of one step on an NVIDIA GPU, five networks by the size of the edit, up the whole ladder; *not run here* where it was not."""

import math

import pandas as pd

from sige.analysis.selection import newest_device, own_rows

NOT_RUN = "not run here"
# Networks of `experiment=gpu`, and the milliseconds that a step should take at most at some size of the edit (percent): our own aims.
AIMS = {
    "ddpm_church256": {1.2: 0.6},
    "gaugan_cityscapes": {},
    "sd14_unet_512": {},
    "sd21_unet_b1": {1.2: 1.5},
    "sd_vae_decoder_512": {5: 0.4},
}
SIZES = (1.2, 5, 15, 30, 100)
METHODS = ("dense", "dense_channels_last", "dense_bf16", "dense_compiled", "dense_graphs", "sige", "incremental")
METHODS += ("incremental_bf16", "incremental_graphs", "incremental_graphs_boxes")


def gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a network of `AIMS` and size of `SIZES`: milliseconds of each method on the newest GPU, or `NOT_RUN`; the largest
    speed-up of ours, as its run paired it, with its interval; what a step should take at most. Empty where nothing was measured.
    """
    rows = own_rows(table)
    if rows.empty:
        return pd.DataFrame()
    rows = rows[(rows["hardware"] == "cuda") & rows["metric"].isin(["latency", "speedup"]) & rows["model"].isin(AIMS)]
    rows = rows[rows["device"] == newest_device(rows)]
    out = []
    for model, aims in AIMS.items():
        for size in SIZES:
            there = rows[(rows["model"] == model) & rows["edit"].isin([f"rectangle-{size:g}", f"labels-{size:g}"])]
            there = there.drop_duplicates(["method", "metric"], keep="last")
            latency, speedup = (there[there["metric"] == metric] for metric in ("latency", "speedup"))
            times = dict(zip(latency["method"], latency["value"], strict=True))
            ours = speedup[speedup["method"].str.startswith("incremental")].sort_values("value").tail(1)
            best = ours.iloc[0] if len(ours) else {"method": "", "baseline": ""}
            out.append(
                {"network": model, "edit (%)": size}
                | {f"{method} (ms)": times.get(method, NOT_RUN) for method in METHODS}
                | {"aim (ms)": aims.get(size, math.nan), "best of ours": best["method"], "against": best["baseline"]}
                | {
                    "speed-up": best.get("value", math.nan),
                    "95 % from": best.get("lo", math.nan),
                    "to": best.get("hi", math.nan),
                }
            )
    return pd.DataFrame(out)
