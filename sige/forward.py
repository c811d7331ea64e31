"""One forward pass that is being recorded or replayed sparsely: the state that the rules share."""

import functools
import inspect
import math
import weakref

import torch
from torch.overrides import TorchFunctionMode

from sige.active_tensor import ActiveTensor, full_view, rows_at
from sige.errors import PathError
from sige.kernels import ops
from sige.memory import describe
from sige.replay.fingerprint import Calls
from sige.state.packed import is_packed, pack
from sige.views import VIEWS, share


class Forward:
    """State of one forward pass.

    recording: True while the pass is recorded: every set is full and what an edit will need is remembered.
    path: the module path's stack, its last item the module that runs.
    plan: FullPlan or Plan.
    memory: the StepMemory written or read.
    journal: of the edit, None while recording.
    conditioning: the Conditioning of this pass: what does not depend on the maps.
    """

    def __init__(self, policy, memory, plan, path, journal=None):
        self.policy, self.memory, self.plan, self.journal = policy, memory, plan, journal
        self.recording = journal is None
        self.calls = Calls() if self.recording else None
        self.refresh_text = True  # whether this pass computes the text of joint sequences anew
        self.path = path
        self.macs = {"conv": 0, "linear": 0, "attention": 0}
        self.fallbacks = []
        self.conditioning = None
        self.projections = {}  # storage of a linear layer's output rows -> (input, weight, bias), for kv="reprojected"
        self.delayed = []  # weak references to results that were put off, see ``sige.delayed``
        self.apart = []  # (plain tensor, what it is a view of in the model and a copy here; None where that is plain too)
        self.resized = {}  # label maps brought to a level's resolution
        self.input_maps = ()  # the call's inputs that are maps
        self._calls = {}
        self._position = 0
        self._made = {}  # while recording: id of a remembered map -> (weak reference to it, its keys)

    def key(self, operator):
        """The key of this call: (module path, operator, call number). PathError when the recording went elsewhere."""
        place = (self.path[-1], operator)
        call = self._calls.get(place, 0)
        self._calls[place] = call + 1
        key = (*place, call)
        trace = self.memory.trace
        if self.recording:
            trace.append(key)
        elif self._position >= len(trace) or trace[self._position] != key:
            expected = describe(trace[self._position]) if self._position < len(trace) else "the end of the forward"
            raise PathError(
                f"the model reached {describe(key)} where the recording has {expected}: an edit must take the path through the "
                "model that was recorded; record again with these settings"
            )
        self._position += 1
        return key

    def finish(self):
        """Check that the whole recorded path was taken."""
        if self._position < len(self.memory.trace):
            raise PathError(
                f"the model ended before {describe(self.memory.trace[self._position])}, which the recording holds: an edit must "
                "take the path through the model that was recorded"
            )

    def count(self, kind, macs):
        """Add multiply-accumulates of a kind (conv, linear, attention)."""
        self.macs[kind] += int(macs)

    def is_sparse_level(self, height, width):
        """Whether maps of this size are kept as active rows."""
        return not self.policy.is_dense_level(height, width)

    def is_dense_here(self):
        """Whether the module that runs now is one that the policy keeps dense."""
        return self.policy.is_dense_module(self.path[-1])

    def is_of_other_samples(self, x):
        """Whether a plain map (B, C, H, W) has another number of samples than the model's: its heads or channels may stand there, and
        no position is known to be that of an edit."""
        return not isinstance(x, ActiveTensor) and x.shape[0] != self.plan.batch

    def is_input_map(self, tensor):
        """Whether ``tensor`` is one of the maps that the model was called with."""
        return any(tensor is other for other in self.input_maps)

    # -- remembering -------------------------------------------------------------------------------------------------

    def keep_map(self, key, kind, active, rows):
        """Bring the remembered map of ``key`` up to date with ``rows`` (n, C) at ``active``; returns the full map.

        While recording, and where the set is full, the rows are the map and only the reference moves. The map is in the
        policy's ``state_dtype``. Whoever reads the map says so with :meth:`reads`: what nobody reads need not be there.
        """
        rows = self._own(rows if rows.dim() == 2 else rows.reshape(len(rows), math.prod(rows.shape[1:])))
        if self.recording:
            full = rows.contiguous()
            self._remember(key, kind, full)
            known, keys = self._made.get(id(full), (lambda: None, []))
            self._made[id(full)] = (weakref.ref(full), [*keys, key] if known() is full else [key])
            self.memory.reads[key] = []
            self.memory.writes[key] = (active.height, active.width, active.kind)
            return full
        entry = self.memory.recall(key)
        if active.full:
            self.journal.value(entry)
            entry.value = rows.contiguous().to(entry.value.dtype)
        else:
            self.journal.exchange(entry, active.positions, rows)
        return entry.value

    def _remember(self, key, kind, full):
        """Remember a map (N, C) in the policy's ``state_dtype``. The recorded forward goes on with the map as it was computed."""
        kept, dtype = full, self.policy.state_dtype
        if dtype is not None and full.is_floating_point():
            kept = pack(full, dtype) if is_packed(dtype) else full.to(dtype)
        self.memory.remember(key, kind, kept)

    def mix_map(self, key, kind, active, rows, rate):
        """Remember a map like :meth:`keep_map`, its new rows (n, C) mixed with the remembered ones: rate * new + (1 - rate) * old.

        Returns the rows, mixed. While recording there is nothing to mix with.
        """
        if self.recording:
            self._remember(key, kind, rows.clone())
            self.memory.reads[key] = [("set", active.height, active.width, active.kind)]
            return rows
        entry = self.memory.recall(key)
        old = self.journal.rows(entry, entry.value, active.positions)
        rows = torch.lerp(old.to(rows.dtype), rows, rate)
        ops.scatter_rows_(entry.value, active.positions, rows)
        return rows

    def exchange_map(self, key, kind, active, rows):
        """Remember a map like :meth:`keep_map`, whatever the ``state_dtype``, and give the rows (n, C) that it held before, for
        differences; None while recording, and where the set is full."""
        if self.recording:
            self.memory.remember(key, kind, rows.clone())
            self.memory.reads[key] = [("set", active.height, active.width, active.kind)]
            return None
        entry = self.memory.recall(key)
        if active.full:
            self.journal.value(entry)
            entry.value = rows.clone()
            return None
        old = self.journal.rows(entry, entry.value, active.positions)
        ops.scatter_rows_(entry.value, active.positions, rows)
        return old

    def reads(self, source, *what):
        """Note that rows of the remembered map ``source`` are read: ``what`` says which, see ``sige.state.needs``."""
        if self.recording:
            for key in self._made[id(source)][1]:
                if what not in self.memory.reads[key]:
                    self.memory.reads[key].append(what)

    def _own(self, rows):
        """Rows that may be remembered: a copy where they are a view of what the caller gave the model."""
        storage = rows.untyped_storage()._cdata
        return rows.clone() if any(storage == x.untyped_storage()._cdata for x in self.input_maps) else rows

    def keep_value(self, key, kind, value):
        """Remember a small value, or replace the one remembered."""
        if self.recording:
            self.memory.remember(key, kind, value)
        else:
            entry = self.memory.recall(key)
            self.journal.value(entry)
            entry.value = value

    def keep_sums(self, key, kind, value, active):
        """:meth:`keep_value` of a matrix with one row a tile of the level's set ``active``, of which an edit reads the active tiles."""
        self.keep_value(key, kind, value)
        if self.recording:
            self.memory.reads[key] = [("tiles", active.height, active.width)]

    def recall(self, key):
        """What the recording (or the last committed edit) remembered under ``key``."""
        return self.memory.recall(key).value

    # -- between active and plain ------------------------------------------------------------------------------------

    def activate(self, plain, axes, active=None):
        """A plain tensor as an active one at its level's set (or at ``active``)."""
        if active is None:
            height, width = (plain.shape[axes.index("h")], plain.shape[axes.index("w")])
            active = self.plan.level_set(height, width)
        return ActiveTensor(rows_at(plain, axes, active), active, axes)

    def densify(self, x, operator="exit"):
        """An active tensor as a plain one: its rows written into the remembered full map. Not a copy of the map."""
        if not isinstance(x, ActiveTensor):
            return x
        key = self.key(operator)
        if x.source is None:
            x.source = self.keep_map(key, "fallback" if operator == "fallback" else "exit", x.active, x.rows)
        full = x.source
        self.reads(full, "all")
        view = full_view(full.to(x.dtype).view(-1, *x.rows.shape[1:]), x.active, x.axes)
        if x.scale != 1:
            view = torch.nn.functional.interpolate(view, scale_factor=x.scale, mode="nearest")
        return torch.nn.functional.pad(view, x.pad) if x.pad != (0, 0, 0, 0) else view

    def leave(self, x):
        """The map of an active tensor for a level that runs dense: the model's own, which it may write to in place."""
        return self.densify(x).clone()

    def resite(self, x, active):
        """Rows (n, features...) of ``x`` at another set of its resolution.

        Where that set may have positions which ``x`` does not compute, the map of ``x`` is remembered, so that it has them all.
        Which is the case is known from the sets' families, so that a recording and its edits agree.
        """
        if x.active is active:
            return x.rows
        features = x.rows.shape[1:]
        if x.source is None and not active.within(x.active):
            x.source = self.keep_map(self.key("resite"), "resited", x.active, x.rows)
        if x.source is not None:
            self.reads(x.source, "set", active.height, active.width, active.kind)
        if x.source is not None and not x.active.full:
            rows = ops.gather_rows(x.source, active.positions).to(x.dtype)
        elif active.full and x.active.full:
            return x.rows
        elif x.active.full:
            rows = ops.gather_rows(x.rows.flatten(1), active.positions)
        else:
            return x.rows.index_select(0, x.active.rows_for(active)[0])
        return rows.view(-1, *features)

    def at_level(self, x):
        """``x`` (axes with h and w, no padding outstanding) at its level's own set, outstanding nearest up-sampling carried out."""
        if x.scale == 1:
            level = self.plan.level_set(x.active.height, x.active.width)
            return x if x.active is level else ActiveTensor(self.resite(x, level), level, x.axes, x.source)
        level = self.plan.level_set(x.active.height * x.scale, x.active.width * x.scale)
        if x.source is None:
            x.source = self.keep_map(self.key("upsample"), "upsampled", x.active, x.rows)
        self.reads(x.source, "parents", level.height, level.width, x.scale)
        rows = ops.gather_rows(x.source, self.plan.parents(level, x.scale)).to(x.dtype)
        return ActiveTensor(rows.view(-1, *x.rows.shape[1:]), level, x.axes)


@functools.lru_cache(maxsize=None)
def _accepts(rule, positional, names):
    """Whether a rule can be called so; an operator called by other names than its rule knows runs as one without a rule."""
    try:
        inspect.signature(rule).bind(None, None, *[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


class Following(TorchFunctionMode):
    """Sends each torch function that the model calls to its incremental rule.

    rules: the table.   otherwise: for functions without one.   delayed: what becomes of results that were put off.
    """

    def __init__(self, forward, rules, otherwise, delayed):
        super().__init__()
        self._forward, self._rules, self._otherwise, self._delayed = forward, rules, otherwise, delayed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        rule, out = self._rules.get(func), None
        if self._forward.delayed:
            out, args, kwargs = self._delayed(self._forward, func, args, kwargs or {})
        if out is not None:
            pass
        elif rule is not None and (not kwargs or _accepts(rule, len(args), tuple(kwargs))):
            out = rule(self._forward, func, *args, **kwargs) if kwargs else rule(self._forward, func, *args)
        else:
            out = self._otherwise(self._forward, func, args, kwargs or {})
        if func in VIEWS:
            share(func, args, out)
        self._forward.conditioning.follow(args, kwargs, out)
        if self._forward.calls is not None:
            self._forward.calls.add(func, args, kwargs or {}, out, self._forward.conditioning)
        return out
