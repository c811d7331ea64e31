"""Joint sequences of text and image tokens: concatenation along the positions, and taking them apart again.

A text part is plain outside the sequence: all its rows are always computed. With ``text_refresh`` other than 1 it is an active
tensor instead, whose set is full in the steps that compute the text anew and empty in those that use the remembered one.
"""

import functools

import torch

from sige.active_set import ActiveSet
from sige.active_tensor import ActiveTensor, full_rows, full_view
from sige.errors import ModelError
from sige.joint_set import JointSet, joint_set, text_set


def common_set(forward, actives):
    """The set at which active tensors of one resolution meet: their own, or that of their level. ModelError for joint sequences
    of other parts: a position would be text in one and image in the other."""
    first = actives[0].active
    if all(x.active is first for x in actives):
        return first
    if any(isinstance(x.active, JointSet) for x in actives):
        orders = " and ".join(x.active.kind for x in actives)
        raise ModelError(
            f"{forward.path[-1] or 'the root module'} puts sequences together whose text and image tokens stand in other places: "
            f"{orders}"
        )
    return forward.plan.level_set(first.height, first.width)


def join(forward, tensors, dim):
    """Concatenate along the positions ``p``. Returns an ActiveTensor, or None where the tensors do not go together."""
    like = next(x for x in tensors if isinstance(x, ActiveTensor))
    parts, rows = [], []
    for x in tensors:
        if isinstance(x, ActiveTensor):
            if x.axes != like.axes or not x.settled or x.active.batch != like.active.batch:
                return None
            known = x.active.parts if isinstance(x.active, JointSet) else (x.active,)
            parts.append(known), rows.append(x.rows)
        elif x.dim() == like.dim() and x.shape[like.axes.index("b")] == like.active.batch:
            part, of_text = _text(forward, x, dim, like)
            parts.append((part,)), rows.append(of_text)
        else:
            return None
    if any(x.shape[1:] != rows[0].shape[1:] for x in rows):
        return None
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in rows])
    rows = [x.to(dtype) for x in rows]
    flat = tuple(part for known in parts for part in known)
    joint = joint_set(flat)
    if len(flat) > len(parts):  # a sequence of sequences: its parts' rows one by one
        rows = [one for x, own in zip(tensors, rows) for one in _apart(x, own)]
    return ActiveTensor(joint.join(rows), joint, like.axes)


def _text(forward, x, dim, like):
    """A plain tensor as a part: what stands for it in the joint set, and its rows."""
    length = x.shape[dim]
    if forward.policy.text_refresh == 1:
        return length, full_rows(x, like.axes)
    anchor = like.active.parts if isinstance(like.active, JointSet) else (like.active,)
    image = next(part for part in anchor if isinstance(part, ActiveSet))
    active = text_set(image, length, forward.refresh_text)
    return active, full_rows(x, like.axes)[: active.count]


def _apart(x, rows):
    if isinstance(x, ActiveTensor) and isinstance(x.active, JointSet):
        return [x.active.part_rows(rows, i, i + 1) for i in range(len(x.active.parts))]
    return [rows]


def narrow(x, dim, start, stop):
    """Positions ``start`` to ``stop - 1`` along axis ``dim`` (``p``) of an active tensor.

    Returns the text as a plain tensor, a map as an active tensor with its own set, several parts as a shorter joint sequence;
    None where the cut goes through a map.
    """
    active = x.active
    if (start, stop) == (0, x.shape[dim]):
        return x
    if not isinstance(active, JointSet) or not x.settled or stop <= start:
        return None
    starts = active.starts()
    if start in starts and stop in starts:
        first, last = starts.index(start), starts.index(stop)
        rows, parts = active.part_rows(x.rows, first, last), active.parts[first:last]
        if all(isinstance(part, int) for part in parts):
            return _plain(rows, active.batch, stop - start, x.axes)
        return ActiveTensor(rows, parts[0] if len(parts) == 1 else joint_set(parts), x.axes)
    i = next(i for i in range(len(active.parts)) if starts[i] <= start < starts[i + 1])
    if stop > starts[i + 1] or not isinstance(active.parts[i], int):
        return None
    whole = _plain(active.part_rows(x.rows, i, i + 1), active.batch, active.parts[i], x.axes)
    return whole.narrow(dim, start - starts[i], stop - start)


def _plain(rows, batch, length, axes):
    """Rows (B * length, features...) of a text as the plain tensor with ``axes``."""
    return full_view(rows, ActiveSet.everything(batch, 1, length, rows.device), axes)


def divide(x, dim, sizes):
    """``x`` cut along the positions into consecutive ``sizes``: a tuple, or None where a cut goes through a map."""
    if sum(sizes) != x.shape[dim]:
        return None
    stops = torch.tensor(sizes).cumsum(0).tolist()
    pieces = tuple(narrow(x, dim, stop - size, stop) for size, stop in zip(sizes, stops))
    return None if any(piece is None for piece in pieces) else pieces
