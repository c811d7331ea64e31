"""``Session``: record a model's forwards once, then edit at a cost proportional to what changed."""

import contextlib
import warnings
from collections import namedtuple

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sige import guards
from sige.answers import Answers
from sige.conditioning import Conditioning, Shared
from sige.delayed import carried_out, settle
from sige.effect import Effect
from sige.errors import ChangedInputError, ModelError, RecordingError
from sige.forward import Following, Forward
from sige.interception import Interception
from sige.masks import check_mask
from sige.memory import StepMemory
from sige.outputs import active_map, copied, plain
from sige.plan import FullPlan, Plan
from sige.policies import policy as find_policy
from sige.policies import usual_policy
from sige.replay.graphs import Graphs, cuda_capture
from sige.replay.program import Report
from sige.replay.replay import Replay
from sige.state.remembered import Remembered
from sige.state.tiers import Tiers

_Asked = namedtuple("_Asked", "mask inside answers")  # of an edit: its mask, an `Inside` of it and `Answers`
_NOTHING = "everything: no operator with a rule takes the model's input at a level that the policy keeps sparse"
_PLANS_KEPT = 2  # a plan holds the row numbers of every convolution: tens of MiB for a large edit


class Session(Remembered):
    """Incremental inference on an unmodified model.

    model: a torch module, or a diffusers pipeline (its U-Net or transformer is followed).
    policy: a name from ``sige.POLICIES`` or a ``sige.Policy``; None: ``tokens`` for a model whose positions overlap nowhere and for a
        pipeline's transformer, else ``incremental``.
    token_grid: (H, W) of the image tokens of a model that takes its image as tokens (B, H*W, C), as Flux does: its first such
        input is the map that an edit changes, and masks are given for that grid.
    memory_budget: bytes that remembered maps may take on the first tier of memory, see ``sige.state.tiers``; the others go to host
        memory and to disk, in a folder of their own in ``state_folder``. Results are the same bits with any budget.
    replay: from the third step on, steps that call what an earlier one called under a mask of the same shape are carried out from its
        trace, without the model's Python: see ``sige.replay``. Turn it off for a model that keeps count of its calls, or changes
        itself between steps.
    cuda_graphs: on an NVIDIA GPU, replay each such step as one CUDA graph from its second replay on. With the dial ``bucket`` masks
        of about one size share them. No GPU has run this yet.

        session = sige.Session(model)
        with session.record():
            y0 = model(x0, t).sample
        with session.edit(mask) as effect:
            y1 = model(x1, t).sample

    Record as many forwards as the sampler has steps; an edit runs them again in the same order. Until ``commit`` the recording
    stays what it was: the next ``edit`` takes back the one before. The session works under ``no_grad``.
    """

    def __new__(cls, model, *args, **kwargs):
        if cls is Session and guards.is_unet_pipeline(model):
            from sige.pipelines.session import PipelineSession

            cls = PipelineSession
        elif cls is Session and guards.is_transformer_pipeline(model):
            from sige.pipelines.without_unet import TransformerSession

            cls = TransformerSession
        return super().__new__(cls)

    def __init__(
        self,
        model,
        policy=None,
        token_grid=None,
        memory_budget=None,
        state_folder=None,
        replay=True,
        cuda_graphs=False,
    ):
        self.token_grid = token_grid
        self.model = guards.find_model(model)
        self.policy = find_policy(usual_policy(self.model) if policy is None else policy)
        self._steps = []
        self._journals = {}
        self._plans = {}
        self._edited = []
        self._interception, self._wants_replay = Interception(self.model), replay
        self._replay = Replay(self.model, replay, self._graphs() if cuda_graphs else None)
        self.extra = None  # what the caller saved beside the recording
        self._shared = Shared()
        self._budget, self._tiers = (memory_budget, state_folder), Tiers(memory_budget, state_folder)

    # -- the four verbs ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def record(self):
        """Remember each forward of the model inside the block. Replaces an earlier recording once the block ends well."""
        steps, self._shared, tiers = [], Shared(), Tiers(*self._budget)
        tiers.prefetch = self.prefetch

        def forward(call, args, kwargs):
            memory, output = self._record_step(call, args, kwargs)
            tiers.settle(len(steps), memory, guards.device_of(memory.inputs))
            steps.append(memory)
            return output

        try:
            with self._interception.route(forward):
                yield self
            if not steps:
                raise RecordingError("nothing was recorded: call the model at least once inside session.record()")
        except BaseException:
            tiers.close()
            raise
        self._tiers.close()
        self._steps, self._journals, self._plans, self._edited, self._tiers = steps, {}, {}, [], tiers

    @contextlib.contextmanager
    def edit(self, mask, changed=(), start=0, dense=(), resume=False):
        """Run the recorded forwards again, sparsely, on inputs that differ inside ``mask`` only.

        mask: bool (H, W) or (B, H, W) at the input's resolution, True where the input changed.
        changed: names of further inputs of the model that may differ from the recording.
        start: number of the recorded forward that the first one of the edit repeats; those before it stay as recorded.
        dense: numbers of recorded forwards that run as the plain model, on any input: a sampler's steps that blend seams, say.
        resume: go on with the edit made last, by forwards that it did not run, instead of taking it back.
        Yields an :class:`~sige.effect.Effect`. An exception inside the block takes the edit back. What an input's values have against
        them is raised by the step that got it on a CPU, and at the end of the block on any other device, for which guards never wait.
        """
        if not self._steps:
            raise RecordingError("nothing is recorded yet: run the model once inside session.record() before an edit")
        if not 0 <= start < len(self._steps):
            raise RecordingError(
                f"start={start} is not among the {len(self._steps)} recorded forwards, which count from 0"
            )
        if not resume:
            self._take_back()
        mask = guards.fit_mask(check_mask(mask), self._steps[0].inputs)
        empty = not bool(mask.any())
        if empty:
            warnings.warn("the edit mask is empty: the recording is returned and nothing is computed", stacklevel=3)
        for step in self._steps:
            step.check_untouched()
        plan = None if empty and not changed else self._plan(mask)
        effect, self._shared = Effect(), Shared()
        asked = _Asked(mask, guards.Inside(mask), Answers())
        self._replay.begin(plan, changed)

        def forward(call, args, kwargs):
            number = start + effect.steps
            if number in dense and number < len(self._steps):
                return self._dense_step(effect, self._steps[number], mask, call, args, kwargs)
            return self._edit_step(number, effect, asked, plan, changed, call, args, kwargs)

        runs = plan is not None and (bool(changed) or not plan.level_set(*plan.size).full)
        self._tiers.begin(plan, [n for n in range(start, len(self._steps)) if n not in dense] if runs else [])
        try:
            with self._interception.route(forward):
                yield effect
            asked.answers.settle()
            for journal in self._journals.values():
                journal.check()
        except BaseException:
            self._take_back()
            raise
        finally:
            self._tiers.end()

    def undo(self):
        """Take the last edit back: every remembered map is again what it was, bit for bit."""
        if not self._edited:
            raise RecordingError("there is no edit to undo: it was committed, taken back already, or never made")
        self._take_back()

    def commit(self):
        """Make the last edit the state that the next one builds on."""
        if not self._edited:
            raise RecordingError("there is no edit to commit: it was taken back, committed already, or never made")
        for journal in self._journals.values():
            journal.check()
        self._record_anew([(step, rerun) for step, _, _, rerun in self._edited if rerun is not None])
        for step, inputs, output, rerun in self._edited:
            if rerun is None:
                step.inputs, step.output = inputs, output
        for journal in self._journals.values():
            journal.commit()
        self._edited = []

    def _record_anew(self, reruns):
        """Record the steps of an edit that ran as the plain model: now their maps are wanted.

        Those that go to disk come first, and none takes its place before all are written: a full disk changes nothing.
        """
        written = []
        try:
            for step, rerun in sorted(reruns, key=lambda pair: not pair[0].stored):
                with self._interception.route(lambda call, args, kwargs: call(*args, **kwargs)):
                    memory, _ = self._record_step(*rerun)
                number = self._steps.index(step)
                path = self._tiers.renew(number, memory)
                if path is not None:
                    written.append((number, memory, path))
                else:
                    self._tiers.adopt(number, memory)
        except BaseException:
            for _, _, path in written:
                path.unlink(missing_ok=True)
            raise
        for number, memory, path in written:
            self._tiers.adopt(number, memory, path)

    def close(self):
        """Forget everything; remove the temporary files."""
        self._tiers.close()
        self._steps, self._journals, self._plans, self._edited = [], {}, {}, []

    @property
    def recorded_steps(self):
        """Number of recorded forwards."""
        return len(self._steps)

    @property
    def replayed_steps(self):
        """Number of sparse steps that were carried out from the trace of an earlier one, over all edits so far."""
        return self._replay.replayed

    @property
    def graph_steps(self):
        """Number of replayed steps among them that were one CUDA graph each."""
        return 0 if self._replay.graphs is None else self._replay.graphs.replayed

    def _graphs(self):
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        if device.type != "cuda":
            raise ModelError(
                f"cuda_graphs=True needs a model on an NVIDIA GPU, this one is on {device}: leave it out there"
            )
        return Graphs(cuda_capture())

    # -- one step ----------------------------------------------------------------------------------------------------

    def _record_step(self, call, args, kwargs):
        memory = StepMemory()
        inputs, tokens = self._inputs(args, kwargs)
        answers = Answers()
        guards.check_finite(inputs, answers)
        answers.settle()
        maps, device = list(guards.images(inputs).values()), guards.device_of(inputs)
        batch, size = (maps[0].shape[0], tuple(maps[0].shape[2:])) if maps else (1, (1, 1))
        plan = FullPlan(self.policy, batch, size, device)
        forward = Forward(self.policy, memory, plan, self._interception.path)
        self._tell_apart(forward, inputs)
        _, output, tree = self._run(forward, call, *self._activated(forward, tokens, args, kwargs))
        memory.check_untouched(recording=True)
        memory.inputs = copied(inputs)
        memory.autocast = guards.autocast_state(device.type)
        memory.output = copied(output)
        memory.tree, memory.requests, memory.dense_macs = tree, plan.requests, forward.macs
        memory.calls = forward.calls.key()
        return memory, tree_unflatten(output, tree)

    def _edit_step(self, number, effect, asked, plan, changed, call, args, kwargs):
        if number >= len(self._steps):
            raise ChangedInputError(
                f"forward {number + 1} of the edit has no recording: {len(self._steps)} were recorded"
            )
        memory = self._steps[number]
        inputs, tokens = self._inputs(args, kwargs)
        held = copied(inputs)  # what is said of them later is said of what they are now
        guards.check_finite(held, asked.answers)
        guards.check_unchanged(held, memory.inputs, asked.inside, changed, asked.answers)
        guards.check_autocast(memory.inputs, memory.autocast)
        mask, nothing = asked.mask, {kind: 0 for kind in memory.dense_macs}
        if plan is None:
            effect.add(nothing, memory.dense_macs, torch.zeros_like(active_map(memory.output, mask)), [])
            self._edited.append((memory, memory.inputs, memory.output, None))
            return tree_unflatten(copied(memory.output), memory.tree)
        if self.policy.dense_above is not None and plan.level_set(*plan.size).full and not changed:
            return self._dense_step(effect, memory, mask, call, args, kwargs)
        journal = self._journals[number] = self._tiers.journal(number)
        working = self._tiers.open(number)
        every = self.policy.text_refresh
        refresh_text = bool(changed) or every is not None and number % every == 0

        def run(journal):
            forward = Forward(self.policy, working, plan, self._interception.path, journal)
            self._tell_apart(forward, inputs, changed)
            forward.refresh_text = refresh_text
            given = self._activated(forward, tokens, args, kwargs)
            leaves, output, tree = self._run(forward, call, *given, memory.output)
            fallbacks = forward.fallbacks or (
                [] if memory.requests or not self._could_be_sparse(forward) else [_NOTHING]
            )
            return output, Report(forward.macs, active_map(leaves, mask), fallbacks, tree)

        told = guards.declared(inputs, changed)
        try:
            output, report = self._replay.step(plan, memory, journal, (args, kwargs), told, refresh_text, run)
            output = copied(output) if memory.stored else output  # what is no copy may lie in a buffer
            self._tiers.shut(working, journal, done=True)
        except BaseException:
            self._tiers.shut(working, journal, done=False)
            journal.undo()
            raise
        finally:
            memory.stamp()
        effect.add(report.macs, memory.dense_macs, report.active, report.fallbacks)
        self._edited.append((memory, held, copied(output), None))
        return tree_unflatten(output, report.tree)

    def _dense_step(self, effect, memory, mask, call, args, kwargs):
        """Where the policy or the caller wants every level dense: the plain model, nothing remembered until ``commit`` asks."""
        with torch.inference_mode(False), torch.no_grad():
            output = call(*args, **kwargs)
        effect.add(memory.dense_macs, memory.dense_macs, active_map(tree_flatten(output)[0], mask), [])
        self._edited.append((memory, None, None, (call, *copied((args, kwargs)))))
        return output

    def _could_be_sparse(self, forward):
        """Whether the policy keeps the maps that the model was called with as active rows."""
        return not forward.is_dense_here() and any(forward.is_sparse_level(*x.shape[2:]) for x in forward.input_maps)

    def _tell_apart(self, forward, inputs, changed=()):
        """Tell a forward which of its inputs are maps and which condition it."""
        maps = guards.images(inputs)
        others = {name: value for name, value in inputs.items() if name not in maps}
        forward.input_maps = tuple(maps.values())
        forward.conditioning = Conditioning(others, changed, self._interception.constant, self._shared)

    def _inputs(self, args, kwargs):
        """The inputs by name, and the one among them that is a map of tokens, or None. It stands there as the map that it is."""
        inputs = guards.named_inputs(self.model, args, kwargs)
        if self.token_grid is None:
            return inputs, None
        name = guards.token_map(inputs, self.token_grid)
        tokens, inputs[name] = inputs[name], guards.as_map(inputs[name], self.token_grid)
        return inputs, tokens

    def _activated(self, forward, tokens, args, kwargs):
        """The call's arguments with the map of tokens as an active tensor."""
        if tokens is None or not forward.is_sparse_level(*self.token_grid):
            return args, kwargs
        active = forward.activate(tokens, ("b", "p", "f"), forward.plan.token_set(*self.token_grid))
        return tree_map(lambda leaf: active if leaf is tokens else leaf, (args, kwargs))

    def _run(self, forward, call, args, kwargs, recorded=None):
        """Call the model's forward under the rules. Returns (leaves as they came, plain leaves, structure)."""
        from sige.rules import RULES, follow, otherwise

        with torch.inference_mode(False), torch.no_grad():
            with Following(forward, RULES, otherwise, follow):
                output = call(*args, **kwargs)
            leaves, tree = tree_flatten(carried_out(forward, output))
            del output
            settle(forward)
            given = [plain(forward, leaf, recorded[i] if recorded else None) for i, leaf in enumerate(leaves)]
        forward.finish()
        return leaves, given, tree

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def _plan(self, mask):
        """The plan of a mask; the last few are kept, so that repeated edits of one region plan once."""
        key = (mask.shape, mask.cpu().numpy().tobytes())
        if key not in self._plans:
            requests = {request: None for step in self._steps for request in step.requests}
            plan = Plan(mask, self.policy, *self._sizes(requests), guards.device_of(self._steps[0].inputs))
            plan.prepare(requests)
            while len(self._plans) >= _PLANS_KEPT:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return self._plans[key]

    def _sizes(self, requests):
        """Sizes (H, W) of the recorded input map and of the finest map that the model made."""
        maps = guards.images(self._steps[0].inputs)
        size = tuple(next(iter(maps.values())).shape[2:]) if maps else (1, 1)
        levels = [tuple(what) if kind in ("level", "tokens") else what[0].out_size for kind, *what in requests]
        return size, max([size, *levels])

    def _take_back(self):
        for number, journal in self._journals.items():
            if len(journal):
                journal.undo()
                self._steps[number].stamp()
        self._edited = []
