"""What the steps of an edit take of its plan: active sets and tensors of row numbers, by names that mean the same in every plan.

A program that knows them by name holds for each plan of one shape, whatever its mask. Names of sets:

    ("set", h, w, kind)                 one of the plan's own
    ("text", set, length, active), ("children", set, tall, wide), ("joint", parts)      made of others, see where they are made

and of tensors, where ``part`` leads into a nest of them:

    ("positions" | "tile_index" | "sample" | "row_of" | "others", set), ("rows_for", set, other)
    ("read", what, geometry, set, part)                                                 see `Plan.made`
"""

import torch

from sige.joint_set import joint_set, text_set
from sige.rules.patches import children

# What a set makes of itself once it is asked: attribute -> name.
_KEPT = {
    "index": "positions",
    "tile_index": "tile_index",
    "_sample": "sample",
    "_row_of": "row_of",
    "_others": "others",
}


class Indices:
    """The names of what a plan holds by now.

    of_set: id of a set -> its name.   tensors: name -> tensor.
    """

    def __init__(self, plan):
        self.of_set, self.tensors = {}, {}
        self._sets = []
        for key, made in plan.sets.items():
            self._name_set(("set", *key), made)
        self._name_joints()
        for name, made in list(zip(self.of_set.values(), self._sets)):
            self._name_tensors(name, made)
        for (what, geometry, chosen), made in plan.made.items():
            if id(chosen) in self.of_set:
                for part, tensor in _parts(made):
                    self.tensors["read", what, geometry, self.of_set[id(chosen)], part] = tensor

    def _name_set(self, name, made):
        if id(made) in self.of_set:
            return
        self.of_set[id(made)] = name
        self._sets.append(made)
        for (length, active), text in made.__dict__.get("_texts", {}).items():
            self._name_set(("text", name, length, active), text)
        for size, finer in made.__dict__.get("_children", {}).items():
            self._name_set(("children", name, *size), finer)

    def _name_joints(self):
        for made in self._sets:  # grows on the way: a joint set may be part of another
            for joint in made.__dict__.get("_joints", {}).values():
                names = [part if isinstance(part, int) else self.of_set.get(id(part)) for part in joint.parts]
                if None not in names:
                    self._name_set(("joint", *names), joint)

    def _name_tensors(self, name, made):
        for attribute, kind in _KEPT.items():
            if getattr(made, attribute) is not None:
                self.tensors[kind, name] = getattr(made, attribute)
        for rows, _, other in made._found.values():
            if id(other) in self.of_set:
                self.tensors["rows_for", name, self.of_set[id(other)]] = rows


def find_set(plan, name):
    """The set of that name in a plan; None where the plan has none."""
    kind, *what = name
    if kind == "set":
        return plan.find_set(*what)
    names = what if kind == "joint" else what[:1]
    parts = [name if isinstance(name, int) else find_set(plan, name) for name in names]
    if None in parts:
        return None
    if kind == "joint":
        return joint_set(parts)
    return text_set(*parts, *what[1:]) if kind == "text" else children(*parts, *what[1:])


def find_tensor(plan, name):
    """The tensor of that name in a plan, made where it is not there yet; None where the plan has no such set, or a full one of which
    nothing was read by row numbers so far."""
    kind, *what = name
    if kind == "read":
        made, geometry, chosen, part = what
        found = find_set(plan, chosen)
        if found is None or found.full and (made, geometry, found) not in plan.made:
            return None
        return _part(plan.make(made, geometry, found), part)
    sets = [find_set(plan, one) for one in what]
    if None in sets:
        return None
    if kind == "rows_for":
        return sets[0].rows_for(sets[1])[0]
    found = getattr(sets[0], kind)
    return found if found is None or isinstance(found, torch.Tensor) else found()


def _parts(value, path=()):
    """(path, tensor) of every tensor in a nest."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for place, part in enumerate(value):
            yield from _parts(part, (*path, place))


def _part(value, path):
    for place in path:
        value = value[place]
    return value
