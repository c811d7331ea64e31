"""How many kernels a traced step launches on an NVIDIA GPU: each operator one, but for views and memory without values none, and of
our own what their Triton implementation launches for these shapes. Calls into PyTorch's own operators count one even where the
library behind them takes two; it is a number to compare steps by, not a measurement."""

import torch

from sige.kernels.triton import tiles

_aten, _sige = torch.ops.aten, torch.ops.sige
_MEMORY = {
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
    _aten.new_empty_strided.default, _aten._unsafe_view.default, _aten.lift_fresh.default, _aten.detach.default,
}  # fmt: skip
_PLACES = {"conv_rows": 1, "conv_rows_fused": 1, "conv_tiles": 1, "linear_rows": None}  # of the row numbers


def launches(calls, looks):
    """Kernels that ``calls`` launch; ``looks`` says what their tensors look like, as `Tracer.looks` does."""
    return sum(_of(call, looks) for call in calls if call[0] != "journal")


def _of(call, looks):
    func, args, _, outs = call
    name = func._schema.name.removeprefix("sige::")
    if func.is_view or func in _MEMORY:
        return 0
    if not func._schema.name.startswith("sige::"):
        return 1
    if name == "update_statistics_":
        return _statistics(args, looks)
    return _product(name, args, looks) if name in _PLACES else 1


def _statistics(args, looks):
    """Of a norm's statistics: one, or two where the tiles are shared out."""
    rows, count, groups = looks[args[0]], looks[args[2]].shape[0], args[8]
    size = rows.shape[0] // max(count, 1), groups, rows.shape[1] // groups
    return 1 + (tiles.statistics(count, *size, rows.dtype.itemsize).parts > 1)


def _product(name, args, looks):
    """Of a convolution or a linear layer: one, or two where a sum is split."""
    place = _PLACES[name]
    index = None if place is None else args[place]
    weight = looks[args[{"linear_rows": 1, "conv_tiles": 3}.get(name, 2)]]
    rows = looks[args[0] if index is None else index].shape[0]
    groups = 1
    if name == "conv_tiles":
        rows, groups = rows * args[2][0] * args[2][1], args[5]
    elif place is not None:
        groups = args[4]
    if name == "conv_rows_fused":
        rows = args[5]
    return tiles.launches(rows, weight.shape, groups, weight.dtype.itemsize, index is not None)
