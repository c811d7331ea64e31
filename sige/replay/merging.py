"""Fewer launches, where each costs time of its own, as on a GPU: what a CPU is as fast with apart.

    update_statistics_ -> affine_rows or activate_rows
    three linear layers of the same rows, of which two go into maps

become ``normalize_rows_`` and ``project_rows_``, and rows that are concatenated channel by channel, such as a U-Net's with those that
skipped some levels, are read where they lie by all who need them. A merged operator stands in the place of the first of those that it
stands for.
"""

import torch

from sige.replay.sharing import written
from sige.replay.tracer import references
from sige.replay.uses import Uses

_aten, _sige = torch.ops.aten, torch.ops.sige


def merged(calls, looks, at_end):
    """The calls of a step with some of them merged; arguments as those of `sige.replay.fusion.fuse`, which come before."""
    for merge in (_norms, _projections, _concatenations):
        calls = merge(Uses(list(calls), looks, at_end))
    return calls


def _norms(uses):
    gone = set()
    for place, call in enumerate(uses.calls):
        if call[0] is not _sige.update_statistics_.default:
            continue
        rows, *statistics, sample, weight, bias, groups, values, eps = call[1]
        old, totals, scale, shift = call[3]
        user = uses.only_user(scale)
        if user is None or user != uses.only_user(shift):
            continue
        normed = _normed(uses.calls[user])
        if normed is None or normed[:3] != (rows, scale, shift) or (normed[3] is None) != (sample is None):
            continue
        *after, target, positions = normed[4:]
        there = all(uses.maker.get(ref, -1) < place for ref in (target, positions))
        if there and uses.undisturbed(place, user, [rows], [target]):
            args = rows, None, None, *statistics, sample, weight, bias, groups, values, eps, *after, target, positions
            uses.calls[place] = (_sige.normalize_rows_.default, args, {}, [old, totals, *uses.calls[user][3]])
            gone.add(user)
    return [call for place, call in enumerate(uses.calls) if place not in gone]


def _normed(call):
    """The arguments of `activate_rows` that a norm's map stands for, None of another call."""
    if call[0] is _sige.affine_rows.default:
        return *call[1], "none", 0.0, None, None
    return call[1][:8] if call[0] is _sige.activate_rows.default else None


def _projections(uses):
    gone = set()
    for place, call in enumerate(uses.calls):
        if call[0] is not _sige.linear_rows.default:
            continue
        rows = call[1][0]
        users = [user for user in uses.users[rows] if user not in gone]
        layers = [(user, *found) for user in users if (found := _into_a_map(uses.calls[user], rows))]
        if len(layers) != 2 or layers[0][-1] != layers[1][-1]:
            continue
        (_, *key, keys, positions), (_, *value, values, _) = layers
        places = place, layers[0][0], layers[1][0]
        parts = [call[1][1:], key, value]
        looks = [uses.looks[weight] for weight, _ in parts]
        alike = all((x.shape, x.dtype) == (looks[0].shape, looks[0].dtype) for x in looks)
        alike &= len({bias is None for _, bias in parts}) == 1
        there = all(uses.maker.get(ref, -1) < min(places) for ref in references((parts, keys, values, positions)))
        apart = len(uses.memory([rows, keys, values])) == 3
        free = all(
            uses.undisturbed(min(places), user, [rows], [target]) for user, target in zip(places, (None, keys, values))
        )
        if alike and there and apart and free:
            args = (rows, *parts[0], *key, *value, keys, values, positions)
            outs = [call[3][0], *(uses.calls[user][3][1] for user in places[1:])]
            uses.calls[min(places)] = (_sige.project_rows_.default, args, {}, outs)
            gone |= {*places} - {min(places)}
    return [call for place, call in enumerate(uses.calls) if place not in gone]


def _into_a_map(call, rows):
    """(weight, bias, map, positions) of a linear layer of ``rows`` that goes into a map and nowhere else; None of another call."""
    if call[0] is not _sige.conv_rows_fused.default:
        return None
    source, index, weight, bias, _, _, *after, activation, _, target, positions, raw = call[1][:17]
    alone = (
        source == rows
        and index is None
        and activation == "none"
        and not raw
        and not any(True for _ in references(after))
    )
    return (weight, bias, target, positions) if alone and target is not None else None


def _concatenations(uses):
    gone = set()
    for place, call in enumerate(uses.calls):
        if call[0] is not _aten.cat.default or not _channels(uses, call):
            continue
        (rows, rest), (whole,) = call[1][0], call[3]
        found = uses.picked(rest, place)
        for first, *beside in ([] if found is None else [found]) + [(place, rest, None)]:
            users = {user: _of_two(uses, user, whole, rows, *beside) for user in uses.users.get(whole, ())}
            read = [rows, *beside]
            if all(users.values()) and all(uses.undisturbed(first, user, read) for user in users):
                for user, instead in users.items():
                    uses.calls[user] = instead
                gone |= {first, place}
                break
    return [call for place, call in enumerate(uses.calls) if place not in gone]


def _channels(uses, call):
    """Whether a concatenation puts the channels of two tensors of rows side by side, for this step alone."""
    _, (tensors, *axis), kwargs, (whole,) = call
    looks = [uses.looks[ref] for ref in tensors]
    alike = len(looks) == 2 and looks[0].dtype == looks[1].dtype and all(len(look.shape) == 2 for look in looks)
    return alike and axis in ([1], [-1]) and not kwargs and whole not in uses.at_end


def _of_two(uses, place, whole, rows, rest, rest_rows):
    """The call at ``place`` with ``rows`` and ``rest`` where it takes ``whole``; None where it cannot."""
    func, args, _, outs = call = uses.calls[place]
    if func == "journal" or [*references(args)].count(whole) != 1 or args[0] != whole:
        return None
    if uses.memory(written(call)) & uses.memory([rows, rest]):
        return None  # they are read while others are written
    if func is _sige.normalize_rows_.default:
        return func, (rows, rest, rest_rows, *args[3:]), {}, outs
    if func is _sige.activate_rows.default:
        return func, (rows, *args[1:8], rest, rest_rows), {}, outs
    if func is _sige.conv_rows_fused.default and args[4] == 1:
        return func, (rows, *args[1:17], rest, rest_rows), {}, outs
    if func is _sige.linear_rows.default:
        nothing = (None,) * 6
        count = uses.looks[whole].shape[0]
        args = rows, None, *args[1:], 1, count, *nothing, "none", 0.0, None, None, True, rest, rest_rows
        return _sige.conv_rows_fused.default, args, {}, [*outs, uses.empty()]
    return None
