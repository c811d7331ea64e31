"""What a kernel still does to a tile of float32 sums before it leaves the registers: bias, vector, residual, scale, shift, activation,
and the exchange with the rows of a map.

Everything here is float32. A result is rounded once, where it is written; the activated rows are computed from the sums, not from the
rounded raw rows, so that in 16 bits they are a little more exact than the operators one by one.
"""

import triton
import triton.language as tl

# The parameters of `finish` that a kernel passes on, where there is nothing to do.
NOTHING = dict(
    vector=None, residual=None, residual_rows=None, sample=None, scale=None, shift=None, second=None, target=None, positions=None,
    target_row=1, target_column=1, VECTOR_ROW=0, ACTIVATION="none", SLOPE=0.0,
)  # fmt: skip


@triton.jit
def activated(values, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """``values`` through one of ``sige.kernels.activations.ACTIVATIONS``."""
    if ACTIVATION == "silu":
        values = values / (1.0 + tl.exp(-values))
    elif ACTIVATION == "relu":
        values = tl.where(values < 0.0, 0.0, values)  # not a number stays so
    elif ACTIVATION == "leaky_relu":
        values = tl.where(values < 0.0, values * SLOPE, values)
    elif ACTIVATION == "gelu":
        values = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))
    return values


@triton.jit
def finish(
    total, line, column, here, known, across, bias, out, vector, residual, residual_rows, sample, scale, shift, second, target,
    positions, target_row, target_column, VECTOR_ROW: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Carry a tile of sums to its end.

    total: (BM, BN) float32, of rows ``line`` (BM,), there where ``here``, and columns ``column`` (BN,), there where ``known``; ``line``
    has 64 bits where some place does not fit 32.   across: width of a row.   out: where raw rows go, or None.
    second: where activated rows go, or None; with ``target`` where the rows go that were in it at ``positions``, whose place the
    activated ones take.   residual_rows: which row of ``residual`` each takes, or None for its own.
    VECTOR_ROW: 0 where one vector serves all rows, else the width; ``sample`` then picks one for each row, as it does of scale and
    shift where it is there.
    """
    inside = here[:, None] & known[None, :]
    place = line[:, None] * across + column[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=known, other=0).to(tl.float32)[None, :]
    if vector is not None:
        if VECTOR_ROW == 0:
            total += tl.load(vector + column, mask=known, other=0).to(tl.float32)[None, :]
        else:
            which = tl.load(sample + line, mask=here, other=0).to(tl.int32)
            total += tl.load(vector + which[:, None] * across + column[None, :], mask=inside, other=0).to(tl.float32)
    if residual is not None:
        from_place = place
        if residual_rows is not None:
            from_row = tl.load(residual_rows + line, mask=here, other=0).to(line.dtype)
            from_place = from_row[:, None] * across + column[None, :]
        total += tl.load(residual + from_place, mask=inside, other=0).to(tl.float32)
    if out is not None:
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
    if second is not None:
        if scale is not None:
            if sample is None:
                factor = tl.load(scale + column, mask=known, other=0).to(tl.float32)[None, :]
                offset = tl.load(shift + column, mask=known, other=0).to(tl.float32)[None, :]
            else:
                which = tl.load(sample + line, mask=here, other=0).to(tl.int32)
                spot = which[:, None] * across + column[None, :]
                factor = tl.load(scale + spot, mask=inside, other=0).to(tl.float32)
                offset = tl.load(shift + spot, mask=inside, other=0).to(tl.float32)
            total = total * factor + offset
        total = activated(total, ACTIVATION, SLOPE)
        if target is None:
            tl.store(second + place, total.to(second.dtype.element_ty), mask=inside)
        else:
            row = tl.load(positions + line, mask=here, other=-1).to(line.dtype)
            spot = target + row[:, None] * target_row + column[None, :] * target_column
            written = inside & (row >= 0)[:, None]
            # Rows are distinct: no other program writes here.
            tl.store(second + place, tl.load(spot, mask=written, other=0), mask=inside)
            tl.store(spot, total.to(target.dtype.element_ty), mask=written)
