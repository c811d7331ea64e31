"""Fused operators on a GPU: one kernel each. The contract stands in ``sige.kernels.ops``."""

import torch
import triton
import triton.language as tl

from sige.kernels.backends import Declined
from sige.kernels.joined_rows import joined
from sige.kernels.normalized_map import normalize_map
from sige.kernels.triton import channels, epilogue, launch
from sige.kernels.triton.convolution import conv_map, rows_product

_BLOCK = 2048  # elements a program holds


@triton.jit(do_not_specialize=["n"])
def _activate(
    rows, n, rows_row, rows_column, rest, rest_rows, rest_row, rest_column, vector, residual, residual_rows, sample, scale, shift,
    second, target, positions, target_row, target_column, VECTOR_ROW: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    line = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    column = tl.program_id(1) * BC + tl.arange(0, BC)
    here, known = line < n, column < WIDTH
    row = tl.where(here, line, -1)[:, None]
    total = channels.taken(
        rows, rest, rest_rows, row, column[None, :], known[None, :], rows_row, rows_column, rest_row, rest_column, FIRST
    ).to(tl.float32)
    epilogue.finish(
        total, line, column, here, known, WIDTH, None, None, vector, residual, residual_rows, sample, scale, shift, second, target,
        positions, target_row, target_column, VECTOR_ROW, ACTIVATION, SLOPE,
    )  # fmt: skip


def _after(
    count, width, dtype, device, vector, residual, residual_rows, sample, scale, shift, activation, slope, target, positions
):  # fmt: skip
    """The arguments of `epilogue.finish`, with new memory for what it gives besides the raw rows."""
    launch.serve(vector, residual, scale, shift, target)
    whole = dict(
        vector=vector, residual=residual, residual_rows=residual_rows, sample=sample, scale=scale, shift=shift, positions=positions
    )  # fmt: skip
    after = epilogue.NOTHING | {name: None if x is None else x.contiguous() for name, x in whole.items()}
    after.update(VECTOR_ROW=width if vector is not None and len(vector) > 1 else 0, ACTIVATION=activation, SLOPE=slope)
    if target is not None:
        after.update(target=target, target_row=target.stride(0), target_column=target.stride(1))
    if target is not None or scale is not None or activation != "none":
        after["second"] = torch.empty(count, width, dtype=dtype if target is None else target.dtype, device=device)
    return after


def activate_rows(rows, scale, shift, sample, activation, slope, target, positions, rest=None, rest_rows=None):
    launch.serve(rows, rest)
    count, width = len(rows), rows.shape[1] + (0 if rest is None else rest.shape[1])
    arguments = _after(
        count, width, rows.dtype, rows.device, None, None, None, sample, scale, shift, activation, slope, target, positions
    )  # fmt: skip
    if arguments["second"] is None:  # nothing to do
        return joined(rows, rest, rest_rows) if rest is not None else rows.clone()
    columns = min(triton.next_power_of_2(width), 256)
    lines = max(1, min(_BLOCK // columns, triton.next_power_of_2(max(count, 1))))
    arguments.update(rows=rows, n=count, rows_row=rows.stride(0), rows_column=rows.stride(1))
    arguments.update(WIDTH=width, BM=lines, BC=columns, **channels.beside(rows, rest, rest_rows))
    launch.run(_activate, (triton.cdiv(count, lines), triton.cdiv(width, columns)), arguments)
    return arguments["second"]


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw, rest=None, rest_rows=None, tiling=None,
):  # fmt: skip
    if index is not None and index.dim() == 1:
        index = index[:, None]
    if index is None and source.dtype != weight.dtype:
        raise Declined(f"a linear layer's rows ({source.dtype}) and weight ({weight.dtype}) must have one dtype")
    width = weight.shape[0]
    after = _after(
        count, width, weight.dtype, weight.device, vector, residual, residual_rows, sample, scale, shift, activation,
        slope, target, positions,
    )  # fmt: skip
    out = rows_product(
        source, index, weight, bias, groups, rows=count, raw=raw, after=after, rest=rest, rest_rows=rest_rows,
        tiling=tiling,
    )  # fmt: skip
    empty = weight.new_empty(0, width)
    return empty if out is None else out, empty if after["second"] is None else after["second"]


def conv_map_fused(
    image, weight, bias, stride, padding, dilation, groups, norm_groups, norm_weight, norm_bias, eps, activation, slope
):
    image = normalize_map(image, norm_groups, norm_weight, norm_bias, eps, activation, slope)
    return conv_map(image, weight, bias, stride, padding, dilation, groups)
