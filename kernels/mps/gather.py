"""Gather and scatter of rows on an Apple GPU. The contract stands in ``sige.kernels.ops``.

Beyond the contract, row number -1 stands for "no row": gathering it gives zeros, scattering it writes nothing.
"""

from sige.kernels.backends import Declined
from sige.kernels.mps import launch


def _words(width, *tensors):
    """Bytes of the widest word that rows of ``width`` elements can be copied by, and how many elements that is."""
    size = tensors[0].element_size()
    if size not in launch.WORDS:
        raise Declined(f"its kernels copy elements of 1, 2, 4 or 8 bytes, not {size}")
    for word in sorted(launch.WORDS, reverse=True):
        many = word // size
        if many <= 1:
            break
        whole = all(x.stride(1) == 1 and x.stride(0) % many == 0 and x.storage_offset() % many == 0 for x in tensors)
        if whole and width % many == 0:
            return word, many
    return size, 1


def gather_rows(source, index):
    out = source.new_empty(index.numel(), source.shape[1])
    word, many = _words(source.shape[1], source, out)
    types = {"T_FROM": launch.WORDS[word], "T_TO": launch.WORDS[word], "CONVERTED": 0}
    width = source.shape[1] // many
    sizes = [source.stride(0) // many, source.stride(1), width]
    arguments = (source, launch.row_numbers(index), out, sizes)
    launch.run("gather", "gather_rows", types, arguments, *launch.each(index.numel(), width))
    return out


def _write(target, index, rows, old=None):
    """Scatter; what was there goes to ``old`` (n, C), contiguous, if given."""
    moved = (target, rows) if old is None else (target, rows, old)
    many = 1
    if target.dtype == rows.dtype:
        word, many = _words(rows.shape[1], *moved)
        types = {"T_FROM": launch.WORDS[word], "T_TO": launch.WORDS[word], "CONVERTED": 0}
    else:
        launch.serve(target, rows)
        types = {"T_FROM": launch.NUMBERS[rows.dtype], "T_TO": launch.NUMBERS[target.dtype], "CONVERTED": 1}
    sizes = [target.stride(0) // many, target.stride(1), rows.stride(0) // many, rows.stride(1)]
    places, grid = launch.row_numbers(index), launch.each(index.numel(), rows.shape[1] // many)
    if old is None:
        launch.run("gather", "scatter_rows", types, (target, places, rows, sizes), *grid)
    else:
        launch.run(
            "gather", "exchange_rows", types, (target, places, rows, old, [*sizes, rows.shape[1] // many]), *grid
        )


def scatter_rows_(target, index, rows):
    _write(target, index, rows)


def exchange_rows_(target, index, rows):
    old = target.new_empty(index.numel(), target.shape[1])
    _write(target, index, rows, old)
    return old
