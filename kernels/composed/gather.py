"""Gather and scatter of rows on a CPU: a row is one contiguous copy, so these run at memory speed."""

import torch


def gather_rows(source, index):
    return torch.index_select(source, 0, index)


def scatter_rows_(target, index, rows):
    target.index_copy_(0, index, rows if rows.dtype == target.dtype else rows.to(target.dtype))


def exchange_rows_(target, index, rows):
    old = torch.index_select(target, 0, index)
    scatter_rows_(target, index, rows)
    return old
