"""A traced step as a program: the operators that matter, as one Python function without the model around them."""

import dataclasses
import weakref

import torch

from sige.active_set import ActiveSet
from sige.kernels import backends
from sige.replay.fusion import fuse
from sige.replay.indices import Indices, find_set, find_tensor
from sige.replay.launches import launches
from sige.replay.tracer import Ref, Untraceable, references


@dataclasses.dataclass
class Report:
    """What there is to say of a step: MACs by kind, what was recomputed (an ActiveSet, or a bool map), operators that fell back to
    dense, and the structure of the output."""

    macs: dict
    active: object
    fallbacks: list
    tree: object


class Program:
    """What one step did, for steps that do the same with other inputs, other remembered values and another mask of the same shape.

    tracer: of the step.   outputs: its plain output leaves.   report: a `Report` of the step.
    plan: the step's plan.   fixed: ids of tensors that are the same under every plan, the model's own.
    launches: kernels that it launches on a GPU: see `sige.replay.launches`.
    born: whether constants that the step itself made from Python's numbers take part: it then holds only for steps with these numbers.
    A program that knows row numbers, or masks, by no name holds only for its plan.
    """

    def __init__(self, tracer, outputs, report, device_type, plan, fixed):
        if tracer.reason is not None:
            raise Untraceable(tracer.reason)
        self._report, self._backend = report, (device_type, backends.active(device_type))
        self._names, self._constants, self._entries, self._lines = {}, [], {}, []
        self._indices = []  # names of what it takes of the plan
        changed = {
            key: entry for kind, key, rows, entry in (c for c in tracer.calls if c[0] == "journal") if rows is None
        }
        values = {key: [tracer.number(part) for part in entry.tensors()] for key, entry in changed.items()}
        tuples = {key: isinstance(entry.value, tuple) for key, entry in changed.items()}
        wanted = [leaf if not isinstance(leaf, torch.Tensor) else tracer.number(leaf) for leaf in outputs]
        self._replaced = list(values)
        self._leaves = tracer.leaves  # complete only now
        at_end = {r for r in wanted if isinstance(r, Ref)} | {r for v in values.values() for r in v}
        kept = fuse(self._living(tracer.calls, set(at_end)), tracer.looks, at_end, backends.merges(device_type))
        self.launches = launches(kept, tracer.looks)
        self.born = any(self._is_birth(call) for call in kept if call[0] != "journal")
        self._write(kept, values, tuples, wanted)
        self._active = Indices(plan).of_set.get(id(report.active))
        of_set = isinstance(report.active, ActiveSet)
        bound = of_set and self._active is None or any(_is_index(x) and id(x) not in fixed for x in self._constants)
        self._plan = weakref.ref(plan) if bound else None
        self._taken = weakref.WeakKeyDictionary()  # plan -> the tensors of those names; None where it has others
        self._looks = [_look(find_tensor(plan, name)) for name in self._indices]
        del self._leaves, self._names

    def holds(self, plan):
        """Whether the program may be run under ``plan`` at all."""
        return self._plan is None or self._plan() is plan

    def fits(self, plan):
        """Whether the kernels that the program was made of still serve the device, and the plan has all that it takes."""
        if backends.active(self._backend[0]) != self._backend[1]:
            return False
        return self.taken(plan) is not None

    def run(self, inputs, memory, journal, plan):
        """Carry the step out on input tensors, a step's memory and a plan. Returns the plain output leaves."""
        return self.call(inputs, memory.output, memory, journal, self.taken(plan))

    def call(self, inputs, recorded, memory, journal, tensors):
        """:meth:`run` with the recorded output leaves given, and what the program takes of a plan."""
        return self._function(inputs, recorded, self.entries(memory), journal, tensors)

    def entries(self, memory):
        """The entries of a step's memory that the program reads or writes."""
        return [memory.entries[key] for key in self._entries]

    def replaced(self, memory):
        """Those among them whose value it replaces by another, instead of writing rows into it."""
        return [memory.entries[key] for key in self._replaced]

    def report(self, plan):
        """What there is to say of a step carried out with ``plan``."""
        if self._active is None:
            return self._report
        return dataclasses.replace(self._report, active=find_set(plan, self._active))

    def taken(self, plan):
        """The tensors that the program takes of a plan, None where they are not all there or not of the shapes that it knows."""
        if plan not in self._taken:
            found = [find_tensor(plan, name) for name in self._indices]
            self._taken[plan] = found if [_look(tensor) for tensor in found] == self._looks else None
        return self._taken[plan]

    # -- what matters ------------------------------------------------------------------------------------------------

    @staticmethod
    def _living(calls, wanted):
        """The calls that something asks for: results, what the journal keeps, writes in place, and all that these need."""
        kept = []
        for call in reversed(calls):
            if call[0] == "journal":
                wanted.update(call[2] or ())
                kept.append(call)
                continue
            func, args, kwargs, outs = call
            if func._schema.is_mutable or any(out in wanted for out in outs):
                wanted.update(references((args, kwargs)))
                kept.append(call)
        return kept[::-1]

    @staticmethod
    def _is_birth(call):
        func, args, kwargs, _ = call
        return func is torch.ops.aten.lift_fresh.default or not any(True for _ in references((args, kwargs)))

    # -- as Python ---------------------------------------------------------------------------------------------------

    def _write(self, calls, values, tuples, wanted):
        """The living calls as the lines of a function, each tensor dropped after its last use."""
        at_end = {ref for ref in (*wanted, *sum(values.values(), [])) if isinstance(ref, Ref)}
        last = {ref: place for place, call in enumerate(calls) for ref in _used(call)}
        for place, call in enumerate(calls):
            self._lines.append(self._kept_line(*call[1:3]) if call[0] == "journal" else self._line(*call))
            touched = {*_used(call), *(() if call[0] == "journal" else call[3])} - at_end
            gone = [
                ref for ref in touched if last.get(ref, place) == place and self._names.get(ref, "").startswith("v")
            ]
            if gone:
                self._lines.append(f"del {', '.join(sorted(self._names.pop(ref) for ref in gone))}")
        for key, refs in values.items():
            parts = ", ".join(self._name(ref) for ref in refs)
            self._lines.append(f"{self._entry(key)}.value = ({parts}{',' if tuples[key] else ''})")
        results = ", ".join(self._text(leaf) for leaf in wanted)
        body = "\n    ".join([*self._lines, f"return [{results}]"])
        names = {f"c{place}": constant for place, constant in enumerate(self._constants)}
        exec(f"def step(inputs, recorded, entries, journal, plan):\n    {body}", names)
        self._function, self._lines = names["step"], None

    def _kept_line(self, key, rows):
        if rows is None:
            return f"journal.value({self._entry(key)})"
        return f"journal.keep({self._entry(key)}, {', '.join(self._name(ref) for ref in rows)})"

    def _line(self, func, args, kwargs, outs):
        given = [self._text(arg) for arg in args] + [f"{key}={self._text(arg)}" for key, arg in kwargs.items()]
        line = f"{self._constant(self._callable(func))}({', '.join(given)})"
        if all(out in self._names or out in self._leaves for out in outs):
            return line  # nothing new: an operator that wrote in place
        returns = func._schema.returns
        many = len(returns) > 1 or isinstance(returns[0].type, torch._C.ListType)
        targets = ", ".join(self._new(out) for out in outs)
        return f"({targets},) = {line}" if many else f"{targets} = {line}"

    def _callable(self, func):
        """The operator without its dispatch to Python; of our own the kernel that serves the device, for this place alone."""
        name = func._schema.name
        return (
            backends.prepared(name.removeprefix("sige::"), self._backend[0]) if name.startswith("sige::") else func._op
        )

    def _constant(self, value):
        for place, known in enumerate(self._constants[-8:], max(0, len(self._constants) - 8)):
            if known is value:
                return f"c{place}"
        self._constants.append(value)
        return f"c{len(self._constants) - 1}"

    def _entry(self, key):
        return f"entries[{self._entries.setdefault(key, len(self._entries))}]"

    def _new(self, ref):
        self._names[ref] = f"v{int(ref)}"
        return self._names[ref]

    def _name(self, ref):
        if ref in self._names:
            return self._names[ref]
        what = self._leaves[ref]
        if what[0] == "constant":
            return self._keep_name(ref, self._constant(what[1]))
        if what[0] == "plan":
            self._indices.append(what[1])
            return self._keep_name(ref, f"plan[{len(self._indices) - 1}]")
        if what[0] in ("input", "output"):
            return f"{'inputs' if what[0] == 'input' else 'recorded'}[{what[1]}]"
        # read once, at the top: the entry's value may be replaced on the way
        name = f"m{int(ref)}"
        part = "" if what[2] is None else f"[{what[2]}]"
        self._lines.insert(0, f"{name} = {self._entry(what[1])}.value{part}")
        return self._keep_name(ref, name)

    def _keep_name(self, ref, name):
        self._names[ref] = name
        return name

    def _text(self, value):
        if isinstance(value, Ref):
            return self._name(value)
        if isinstance(value, (tuple, list)):
            inner = "".join(f"{self._text(part)}, " for part in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if (
            value is None
            or isinstance(value, (bool, int))
            or isinstance(value, float)
            and value == value
            and abs(value) < 1e300
        ):
            return repr(value)
        return self._constant(value)


def _look(tensor):
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _is_index(value):
    return isinstance(value, torch.Tensor) and not value.dtype.is_floating_point and not value.dtype.is_complex


def _used(call):
    """The numbers of the tensors that a call takes."""
    return list(references(call[2] or () if call[0] == "journal" else call[1:3]))
