"""Reading rows whose channels may lie in two tensors, as if these had been concatenated."""

import triton
import triton.language as tl

NOTHING = dict(rest=None, rest_rows=None, rest_row=1, rest_column=1, FIRST=0)  # where all channels lie in one


def beside(rows, rest, rest_rows):
    """The arguments of a kernel that reads ``rows`` (n, C) with `taken`: see ``sige.kernels.ops.activate_rows``."""
    if rest is None:
        return NOTHING
    rest_rows = None if rest_rows is None else rest_rows.contiguous()
    row, column = rest.stride()
    return dict(rest=rest, rest_rows=rest_rows, rest_row=row, rest_column=column, FIRST=rows.shape[1])


@triton.jit
def taken(
    rows, rest, rest_rows, row, column, known, rows_row, rows_column, rest_row, rest_column, FIRST: tl.constexpr
):  # fmt: skip
    """Numbers of the rows ``row``, 0 where that is negative, at the columns ``column``, 0 where not ``known``; the three are blocks of
    two dimensions that broadcast. Columns from FIRST on are those of ``rest``, if there is one."""
    inside = (row >= 0) & known
    here = rows + row * rows_row + column * rows_column
    if rest is None:
        values = tl.load(here, mask=inside, other=0)
    else:
        from_row = row
        if rest_rows is not None:
            from_row = tl.load(rest_rows + row, mask=row >= 0, other=0).to(row.dtype)
        there = rest + from_row * rest_row + (column - FIRST) * rest_column
        first = tl.load(here, mask=inside & (column < FIRST), other=0)
        values = tl.where(column < FIRST, first, tl.load(there, mask=inside & (column >= FIRST), other=0))
    return values
