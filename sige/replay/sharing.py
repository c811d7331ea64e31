"""What a traced step computes twice of the same tensors is computed once, views that lead nowhere are left out; and what there is to
ask of a traced call."""

import torch

from sige.replay.tracer import Ref, references

_SCALES = (torch.ops.aten.div.Tensor, torch.ops.aten.mul.Tensor)
_RESHAPES = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def arguments(call):
    """What a call takes, as a nest of arguments."""
    return (call[2] or ()) if call[0] == "journal" else call[1:3]


def results(call):
    """Numbers of what a call gives."""
    return () if call[0] == "journal" else call[3]


def written(call):
    """Numbers of the tensors that a call writes to."""
    if call[0] == "journal":
        return []
    func, args, kwargs, _ = call
    named = zip(func._schema.arguments, [*args, *[None] * len(func._schema.arguments)])
    return [
        ref
        for declared, value in named
        if declared.alias_info is not None and declared.alias_info.is_write
        for ref in references(kwargs.get(declared.name, value))
    ]


def shared(calls, looks, at_end):
    """The calls without those that compute anew what an earlier one computed of the same tensors, such as the activation of a time
    embedding before each block's projection, or that change nothing. Neither what they take nor what they give may be written to in the
    step."""
    touched = {looks[ref].storage for call in calls for ref in written(call)}
    known, renamed, kept = {}, {}, []
    for call in calls:
        call = _renamed(call, renamed)
        if call[0] != "journal" and not written(call) and torch.Tag.nondeterministic_seeded not in call[0].tags:
            refs = [*references(call[1:3])]
            free = refs and not any(looks[ref].storage in touched for ref in (*refs, *call[3]))
            if free and not any(ref in at_end for ref in call[3]):
                if _changes_nothing(call, looks):
                    renamed[call[3][0]] = call[1][0]
                    continue
                key = repr((str(call[0]), call[1:3]))
                if key in known:
                    renamed.update(zip(call[3], known[key]))
                    continue
                known[key] = call[3]
        kept.append(call)
    return kept


def _changes_nothing(call, looks):
    """Whether a call gives what it takes, such as the division by a residual scale of 1."""
    func, args, kwargs, _ = call
    if func not in _SCALES or kwargs or isinstance(args[1], Ref) or args[1] != 1:
        return False
    before, after = looks[args[0]], looks[call[3][0]]
    return (before.shape, before.dtype) == (after.shape, after.dtype)


def straightened(calls, looks, at_end):
    """The calls without views that lead back to a shape which the tensor had before, such as heads taken apart and put together again:
    what they give is that tensor. Views that nobody uses go too."""
    renamed, past, kept = {}, {}, []
    for call in calls:
        call = _renamed(call, renamed)
        if call[0] in _RESHAPES:
            source, (result,) = call[1][0], call[3]
            seen = past.get(source, [source])
            same = [ref for ref in seen if looks[ref].shape == looks[result].shape]
            if same and result not in at_end:
                renamed[result] = same[0]
                continue
            past[result] = [*seen, result]
        kept.append(call)
    return _without_unused_views(kept, at_end)


def _without_unused_views(calls, at_end):
    wanted, kept = set(at_end), []
    for call in reversed(calls):
        if call[0] == "journal" or not call[0].is_view or wanted.intersection(call[3]):
            wanted.update(references(arguments(call)))
            kept.append(call)
    return kept[::-1]


def _renamed(call, names):
    """A call with the numbers of its arguments replaced."""
    if not names:
        return call
    if call[0] == "journal":
        return (*call[:2], _replaced(call[2], names), *call[3:])
    return (call[0], *_replaced(call[1:3], names), call[3])


def _replaced(value, names):
    if isinstance(value, Ref):
        return names.get(value, value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(part, names) for part in value)
    if isinstance(value, dict):
        return {key: _replaced(part, names) for key, part in value.items()}
    return value
