"""Queries, keys and values of rows on a GPU: one kernel, which writes keys and values where attention reads them. The contract stands
in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.projected_rows import made_of
from sige.kernels.triton import epilogue, launch, tiles
from sige.kernels.triton.convolution import linear_rows
from sige.kernels.triton.gather import exchange_rows_

_apart = made_of(linear_rows, exchange_rows_)


@triton.jit(do_not_specialize=["n"])
def _project(
    rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, queries, keys, values, old_keys, old_values,
    positions, n, rows_row, rows_column, keys_row, keys_column, values_row, values_column, IN: tl.constexpr, OUT: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BIG: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Program axes: tiles of rows and outputs (rows fastest), and which of the three.
    which = tl.program_id(1)
    weight, bias = query_weight, query_bias
    old, target, target_row, target_column = old_keys, keys, keys_row, keys_column  # of queries never looked at
    if which == 1:
        weight = key_weight
        bias = key_bias
    elif which == 2:
        weight = value_weight
        bias = value_bias
        old = old_values
        target = values
        target_row = values_row
        target_column = values_column
    blocks = tl.cdiv(n, BM)
    m = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    o = tl.program_id(0) // blocks * BN + tl.arange(0, BN)
    here, known = m < n, o < OUT
    line = m.to(tl.int64) if BIG else m
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, IN, BK):
        c = start + tl.arange(0, BK)
        place = line[:, None] * rows_row + c[None, :] * rows_column
        left = tl.load(rows + place, mask=here[:, None] & (c < IN)[None, :], other=0)
        right = tl.load(weight + o[None, :] * IN + c[:, None], mask=(c < IN)[:, None] & known[None, :], other=0)
        if WIDEN:
            # Triton's interpreter multiplies the bit patterns of bfloat16 as if they were integers (3.6 to 3.9).
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if which == 0:
        epilogue.finish(
            total, line, o, here, known, OUT, bias, queries, None, None, None, None, None, None, None, None, None, 1, 1, 0, "none", 0.0,
        )  # fmt: skip
    else:
        epilogue.finish(
            total, line, o, here, known, OUT, bias, None, None, None, None, None, None, None, old, target, positions, target_row,
            target_column, 0, "none", 0.0,
        )  # fmt: skip


def project_rows_(
    rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, keys, values, positions
):
    layers = query_weight, query_bias, key_weight, key_bias, value_weight, value_bias
    weights, biases = layers[::2], layers[1::2]
    alike = len({weight.shape for weight in weights}) == 1 and keys.dtype == values.dtype
    if not alike or len({bias is None for bias in biases}) > 1 or {weight.dtype for weight in weights} != {rows.dtype}:
        return _apart(rows, *layers, keys, values, positions)
    launch.serve(rows, *layers, keys, values)
    (count, channels), outputs = rows.shape, len(query_weight)
    fused = rows.dtype != torch.float32 or launch.precise() == "tf32"
    chosen = tiles.choose(
        count, outputs, channels, 1, 3, rows.element_size(), fused, launch.multiprocessors(rows.device), gathered=False
    )  # fmt: skip
    queries = torch.empty(count, outputs, dtype=rows.dtype, device=rows.device)
    old_keys, old_values = (torch.empty(count, outputs, dtype=x.dtype, device=rows.device) for x in (keys, values))
    arguments = {f"{name}_weight": x.contiguous() for name, x in zip(("query", "key", "value"), weights)}
    arguments.update({f"{name}_bias": x for name, x in zip(("query", "key", "value"), biases)})
    arguments.update(rows=rows, queries=queries, keys=keys, values=values, old_keys=old_keys, old_values=old_values)
    arguments.update(positions=positions.contiguous(), n=count, rows_row=rows.stride(0), rows_column=rows.stride(1))
    arguments.update(keys_row=keys.stride(0), keys_column=keys.stride(1), values_row=values.stride(0))
    arguments.update(values_column=values.stride(1), IN=channels, OUT=outputs, PRECISION=launch.precise())
    arguments.update(WIDEN=launch.INTERPRETED and rows.dtype == torch.bfloat16, BIG=launch.big(rows, keys, values))
    arguments.update(BM=chosen.rows, BN=chosen.outputs, BK=chosen.depth)
    grid = (triton.cdiv(count, chosen.rows) * triton.cdiv(outputs, chosen.outputs), 3)
    launch.run(_project, grid, arguments, chosen.warps, chosen.stages)
    return queries, old_keys, old_values
