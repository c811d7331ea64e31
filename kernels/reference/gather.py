"""Gather and scatter of rows, as plainly as they can be said. The contract stands in ``sige.kernels.ops``."""


def gather_rows(source, index):
    return source[index]


def scatter_rows_(target, index, rows):
    target[index] = rows.to(target.dtype)


def exchange_rows_(target, index, rows):
    old = target[index]
    target[index] = rows.to(target.dtype)
    return old
