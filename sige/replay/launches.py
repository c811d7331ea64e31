"""How many kernels a traced step launches on an NVIDIA GPU: each operator one, but for views and memory without values none, and for
our own what their Triton implementation launches for these shapes: one, but for a norm's statistics of many tiles. Calls into
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
    if func is _sige.update_statistics_.default:
        return 1 + _shared_out(looks[args[0]], looks[args[2]], looks[args[0]].shape[1], args[8])
    if func is _sige.normalize_rows_.default:
        width = sum(looks[ref].shape[1] for ref in args[:2] if ref is not None)
        return 1 + 2 * _shared_out(looks[args[0]], looks[args[4]], width, args[10])
    return 1


def _shared_out(rows, changed, width, groups):
    """Whether the tiles of a norm of ``groups`` are so many that they are shared out; ``rows`` (n, ...) and the tiles ``changed`` are
    looks, ``width`` is how many channels there are."""
    count = changed.shape[0]
    size = rows.shape[0] // max(count, 1), groups, width // groups
    return tiles.statistics(count, *size, rows.dtype.itemsize).parts > 1
