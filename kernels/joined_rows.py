"""Rows whose channels lie in two tensors, for the backends that put them together before they read them."""

import torch


def joined(rows, rest, rest_rows):
    """``rows`` (n, C) and beside them ``rest``: (n, D), or a map (M, D) with ``rest_rows`` (n,) picking its rows. Returns (n, C + D);
    ``rows`` itself where ``rest`` is None."""
    if rest is None:
        return rows
    return torch.cat([rows, rest if rest_rows is None else rest.index_select(0, rest_rows)], 1)
