"""How many kernels a traced step launches on an NVIDIA GPU: each operator one, but for views and memory without values none, and for
our own what their Triton implementation launches for these shapes: one, or two for a norm's statistics of many tiles. Calls into
PyTorch's own operators count one even where the library behind them takes two; it is a number to compare steps by, not a measurement.
"""

import torch

from sige.kernels.triton import tiles

_aten, _sige = torch.ops.aten, torch.ops.sige
_MEMORY = {
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
    _aten.new_empty_strided.default, _aten._unsafe_view.default, _aten.lift_fresh.default, _aten.detach.default,
}  # fmt: skip


def launches(calls, looks):
    """Kernels that ``calls`` launch; ``looks`` says what their tensors look like, as `Tracer.looks` does."""
    return sum(_of(call, looks) for call in calls if call[0] != "journal")


def _of(call, looks):
    func, args, _, outs = call
    if func.is_view or func in _MEMORY:
        return 0
    if not func._schema.name.startswith("sige::"):
        return 1
    if outs and all(0 in looks[out].shape for out in outs):
        return 0
    return _statistics(args, looks) if func is _sige.update_statistics_.default else 1


def _statistics(args, looks):
    """Of a norm's statistics: one, or two where the tiles are shared out."""
    rows, count, groups = looks[args[0]], looks[args[2]].shape[0], args[8]
    size = rows.shape[0] // max(count, 1), groups, rows.shape[1] // groups
    return 1 + (tiles.statistics(count, *size, rows.dtype.itemsize).parts > 1)
