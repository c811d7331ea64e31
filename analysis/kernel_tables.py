"""The operators of the kernels one by one: their time, the best that is composed of PyTorch's own operators, the machine's roofline."""

import math

import pandas as pd

from sige.analysis.selection import newest_device, own_rows, pivot

# The methods that are the operator itself, and what a row says of them; the others are composed.
KERNELS = {"kernel": "", "boxes": ", boxes"}
_METRICS = ["latency", "speedup", "roofline", "attainable", "copy_rate", "gemm_rate", "copy_bound", "gate"]


COLUMNS = ["operator", "edit", "area (%)", "dtype", "time (ms)", "best composed", "its time (ms)", "speed-up"]
COLUMNS += ["95 % from", "to", "attainable (ms)", "roofline share", "share from", "share to", "share of the composed"]
COLUMNS += ["bound by", "copies (GB/s)", "multiplies (GFLOP/s)", "device"]


def kernels(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row an operator (each of its `KERNELS`), edit and dtype, of the newest device: times (ms), speed-up against the
    fastest composed way with its interval, and the share of the roofline that each of the two reaches."""
    rows = own_rows(table)
    rows = rows[rows["scope"] == "kernel"]
    device = newest_device(rows)
    rows = rows[rows["device"] == device]
    out = []
    for operator in sorted(rows["model"].unique()):
        wide = pivot(rows[rows["model"] == operator], _METRICS)
        keys = [(edit, method, dtype) for edit, method, dtype in wide.index if method in KERNELS]
        for edit, method, dtype in sorted(
            keys, key=lambda key: (wide.loc[key]["edit_area"], key[0], key[2], key[1] != "kernel")
        ):
            row = wide.loc[(edit, method, dtype)]
            best = row["speedup.baseline"]
            composed = wide.loc[(edit, best, dtype)] if best else None
            out.append(
                {
                    "operator": operator + KERNELS[method],
                    "edit": edit,
                    "area (%)": 100 * row["edit_area"],
                    "dtype": dtype,
                }
                | {"time (ms)": row["latency"], "best composed": best}
                | {"its time (ms)": math.nan if composed is None else composed["latency"]}
                | {"speed-up": row["speedup"], "95 % from": row["speedup.lo"], "to": row["speedup.hi"]}
                | {"attainable (ms)": row["attainable"], "roofline share": row["roofline"]}
                | {"share from": row["roofline.lo"], "share to": row["roofline.hi"]}
                | {"share of the composed": math.nan if composed is None else composed["roofline"]}
                | {"bound by": {1.0: "copying", 0.0: "multiplying"}.get(row["copy_bound"], "")}
                | {"copies (GB/s)": row["copy_rate"], "multiplies (GFLOP/s)": row["gemm_rate"]}
                | {"device": device}
            )
    return pd.DataFrame(out, columns=COLUMNS)
