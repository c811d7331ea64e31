"""Views: active tensors that stand for the same memory of the plain model.

An operator that writes in place gives an active tensor new rows; the views of it keep the old ones. Those are therefore lost: the
model may drop them, but when it uses one again the session says so, instead of going on with values from before the write.
"""

import weakref

import torch

from sige.active_tensor import ActiveTensor

T = torch.Tensor

# What returns views. Those that need not (reshape, contiguous, flatten) are taken to: a refusal is loud, a lost write is not.
_WHOLE = {
    T.view, T.reshape, torch.reshape, T.flatten, torch.flatten, T.unflatten, torch.unflatten, T.transpose, torch.transpose,
    T.swapaxes, torch.swapaxes, T.permute, torch.permute, torch.einsum, T.squeeze, torch.squeeze, T.unsqueeze, torch.unsqueeze,
    T.contiguous, T.detach, torch.detach, T.__getitem__, T.select, torch.select, T.narrow, torch.narrow,
    T.mT.__get__,
}  # fmt: skip
_PARTED = {
    T.chunk, torch.chunk, T.split, torch.split, T.split_with_sizes, torch.split_with_sizes, T.unbind, torch.unbind,
}  # fmt: skip
# These return their argument where it has the type already.
_SAME_TYPE = {T.to, T.float, T.half, T.bfloat16, T.type}
VIEWS = frozenset(_WHOLE | _PARTED | _SAME_TYPE)


class _Memory:
    """One memory of the plain model: weak references to the active tensors that stand for it or for parts of it."""

    def __init__(self):
        self.tensors = []


def share(func, args, out):
    """Note that ``out``, which ``func`` (one of ``VIEWS``) made of ``args``, is a view of the active tensor among them."""
    x = args[0] if isinstance(args[0], ActiveTensor) else args[-1]
    if not isinstance(x, ActiveTensor) or out is x or func in _SAME_TYPE and out.dtype != x.dtype:
        return
    if x.place is None:
        x.place = (_Memory(), ())
        x.place[0].tensors.append(weakref.ref(x))
    memory, path = x.place
    call = object()  # parts of one call do not overlap
    for number, part in enumerate(out) if isinstance(out, (tuple, list)) else ((None, out),):
        if isinstance(part, ActiveTensor) and part is not x:
            part.place = (memory, path if number is None else (*path, (call, number)))
            memory.tensors.append(weakref.ref(part))


def overwrite(forward, x, func):
    """``func`` is about to write to ``x`` in place: whatever else stands for the same memory is lost."""
    if x.place is None:
        return
    memory, path = x.place
    for found in memory.tensors:
        other = found()
        if other is not None and other is not x and _overlap(path, other.place[1]):
            _lose(forward, other, func)


def overwrite_copy(forward, x, func):
    """``func`` is about to write in place to a copy of ``x`` that is a view of it in the model: ``x`` is lost, with all its views."""
    overwrite(forward, x, func)
    _lose(forward, x, func)


def _lose(forward, x, func):
    if x.lost:
        return
    x.lost = (
        f"{forward.path[-1] or 'the root module'} calls {func.__name__} on one view of a map, and the model uses another view "
        "of the same map afterwards: use the out-of-place operator in the model"
    )
    x.source = None
    del x.rows


def _overlap(one, other):
    """Whether two parts overlap, by the splits that lead to them."""
    for (call, number), (other_call, other_number) in zip(one, other):
        if call is not other_call:
            return True
        if number != other_number:
            return False
    return True
