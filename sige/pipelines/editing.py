"""One edit of a recorded run: the pipeline runs to its end, dense steps first where asked for, then sparse ones.

After each sparse step latents and the scheduler's history are put back outside the mask: there they are the recording's, bit for bit.
"""

import contextlib
import warnings

import torch

from sige.effect import Effect
from sige.errors import ChangedInputError
from sige.pipelines import sampling
from sige.pipelines.timing import watch
from sige.pipelines.trajectory import put_back, put_back_history, scheduler_tensors
from sige.session import Session


class NothingToEdit(Exception):
    """The mask that was found is empty: the rest of the run would change nothing."""


class EditRun:
    """State of an edit while the pipeline runs.

    session: the PipelineSession.   pipe: what ``sampling.pipeline_for`` gave.   request: what the edited picture is asked by.
    start: the recorded step that the run begins with.
    mask: bool (B, h, w), or None: ``find(latents of the run so far) -> mask`` after ``dense_first`` steps.
    changed: names of U-Net inputs that the edit changes.   dense_last: steps at the end that run dense on the whole picture.
    blocks: AttentionBlocks of the edit.
    """

    def __init__(self, session, pipe, request, start, mask, changed, dense_first, dense_last, find, blocks):
        self.session, self.pipe, self.request, self.start = session, pipe, request, start
        self.clock = None
        self.changed, self._find, self.blocks = changed, find, blocks
        self.mask = None if mask is None else mask.to(session.original.latents.device)
        self.trajectory = session.trajectory.copy()
        self.total = len(self.trajectory)
        self.dense_first, self.dense_last = dense_first, dense_last
        self.effect, self.vae_effect = Effect(), None
        self.first_calls, self.steps, self.calls = [], [], 0
        self._found, self._counted = [], (0, 0)
        self._sparse = contextlib.ExitStack()
        self._control = contextlib.ExitStack()

    def go(self):
        """Run. Returns the pictures (B, 3, H, W) in [0, 1], None when the mask that was found is empty."""
        with self._control, self._sparse, contextlib.ExitStack() as stack:
            self.clock = watch(stack, self.session.model, self.session.vae.vae)
            self.session.vae.edit_encoder(stack, self.pipe, self.request)
            stack.callback(self.session.model.register_forward_pre_hook(self._before_call, with_kwargs=True).remove)
            self._control.enter_context(self.blocks.block("dense" if self.dense_first else "sparse"))
            if not self.dense_first:
                self._turn_sparse()
            try:
                return sampling.run(self.pipe, self.request, self._after_step)
            except NothingToEdit:
                getattr(self.pipe, "maybe_free_model_hooks", lambda: None)()
                return None

    def commit(self):
        """Make what the run left in the recordings theirs, the first dense steps included. Returns the MACs that it takes."""
        session, macs, held = self.session, 0, self.blocks.macs
        self.blocks.put_back(self.mask)
        if self.first_calls:
            with self.blocks.block("replay"):
                macs = self._replay()
        macs += self.blocks.macs - held
        macs += sum(sum(step.dense_macs.values()) for step, _, _, again in session._edited if again is not None)
        put_back = session.vae.prepare()
        try:
            with self.blocks.block("sparse", first=self.total - self.dense_last):
                Session.commit(session)
        except BaseException:
            put_back()
            raise
        session.vae.commit()
        return macs

    def _replay(self):
        """Carry out the dense first steps sparsely, on the blended latents, as part of the same edit."""
        last = self.start + len(self.first_calls)
        rest = range(last, self.total)  # of the recording, not run here
        again = Session.edit(self.session, self.call_mask(), self.changed, self.start, rest, resume=True)
        with again as effect, torch.no_grad():
            for step, (args, kwargs) in enumerate(self.first_calls):
                args, kwargs = self.blended(self.start + step, args, kwargs)
                self.session.model(*args, **kwargs)
        return effect.macs

    # -- between and before calls ------------------------------------------------------------------------------------

    def _turn_sparse(self):
        """From here on the U-Net and the decoder run sparsely."""
        first, session = self.start + self.dense_first, self.session
        if first < self.total:
            whole = range(self.total - self.dense_last, self.total)
            edit = Session.edit(session, self.call_mask(), self.changed, start=first, dense=whole)
            self.effect = self._sparse.enter_context(edit)
        if session.vae.decoder is not None:
            mask = torch.ones_like(self.mask) if self.dense_last else self.mask
            self.vae_effect = session.vae.edit_decoder(self._sparse, mask)

    def call_mask(self):
        """The mask for a call's batch, which holds each picture once for each branch of guidance."""
        return self.mask.repeat(len(recorded_input(self.session, 0)) // self.request.batch, 1, 1)

    def _before_call(self, module, args, kwargs):
        number = self.start + self.calls
        timestep = float(args[1] if len(args) > 1 else kwargs["timestep"])
        if number >= self.total or timestep != self.session.trajectory.times[number]:
            raise ChangedInputError(
                f"U-Net call {number + 1} of the edit is for time step {timestep:g}, which the recording has not there: use the "
                "scheduler with which the picture was generated"
            )
        self.calls += 1
        if self.calls <= self.dense_first:
            self.first_calls.append((tuple(args), dict(kwargs)))
            return None
        if number >= self.total - self.dense_last:
            return None
        return self.blended(number, args, kwargs)

    def blended(self, number, args, kwargs):
        """A call's arguments with the recorded sample outside the mask."""
        mask, recorded = self.call_mask(), recorded_input(self.session, number)
        return BlendInput(lambda now: put_back(mask, now, recorded))(None, args, kwargs)

    def _after_step(self, pipe, step, timestep, latents):
        number, shape = self.start + step, latents.shape
        dense = sum(self.session._steps[number].dense_macs.values())
        if step < self.dense_first:
            self._found.append((latents.clone(), self._history(shape)))
            self.steps.append((number, "dense", dense, dense))
            if step + 1 == self.dense_first:
                self._end_of_dense(shape)
                latents = self.trajectory.latents[number]
            return latents
        sparse = number < self.total - self.dense_last
        if sparse:
            latents = put_back(self.mask, latents, self.session.trajectory.latents[number])
            put_back_history(self.pipe.scheduler, shape, self.mask, self.session.trajectory.history[number])
        macs = self.effect.macs - self._counted[0]
        self._counted = (self.effect.macs, self.effect.dense_macs)
        self.steps.append((number, "sparse" if sparse else "dense", macs, dense))
        self.trajectory.set(number, latents, self._history(shape), self.request.text)
        return latents

    def _end_of_dense(self, shape):
        """The first steps are done: find the mask, blend what they made into the recording, go on sparsely."""
        self._control.close()
        if self.mask is None:
            with self.clock.part("mask"):
                self.mask = self._find([latents for latents, _ in self._found])
            if not self.mask.any():
                raise NothingToEdit
        recorded = self.session.trajectory
        for step, (latents, history) in enumerate(self._found):
            number = self.start + step
            was = recorded.history[number]
            history = {at: put_back(self.mask, x, was[at]) if at in was else x for at, x in history.items()}
            self.trajectory.set(
                number, put_back(self.mask, latents, recorded.latents[number]), history, self.request.text
            )
        put_back_history(self.pipe.scheduler, shape, self.mask, recorded.history[self.start + self.dense_first - 1])
        self._control.enter_context(self.blocks.block("sparse"))
        self._turn_sparse()

    def _history(self, shape):
        return scheduler_tensors(self.pipe.scheduler, shape)


class BlendInput:
    """A forward pre-hook that replaces the first argument, the map."""

    def __init__(self, blend):
        self._blend = blend

    def __call__(self, module, args, kwargs):
        if args:
            return (self._blend(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "sample": self._blend(kwargs["sample"])}


def recorded_input(session, number, name="sample"):
    """The map that recorded forward ``number`` of a session was called with."""
    return session._steps[number].inputs[name]


def recorded_call(session, number):
    """The keyword arguments that recorded forward ``number`` of a session was called with."""
    found = {}
    for name, value in session._steps[number].inputs.items():
        *outer, last = name.split(".")
        place = found
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return found


@contextlib.contextmanager
def quiet_where_empty():
    """Without the warning that an edit's mask is empty, where that is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the edit mask is empty")
        yield
