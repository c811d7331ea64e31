"""Sessions on stock diffusers pipelines: generate a picture once, then edit it at a cost proportional to the edit.

session = sige.Session(pipe)                                   # text-to-image, image-to-image, in-painting, DDPM and DDIM
picture = session.generate("a dog on a sofa", seed=0)          # the pipeline's own run, every step remembered
edited = session.edit("a cat on a sofa")                       # the mask is found in the first steps
session.commit()                                               # the next edit builds on this one; or session.undo()
edited = session.edit("a cat on a red sofa", mask=mask)        # inside a mask of the user's
edited = session.edit(image=painted, strength=0.6)             # SDEdit where two pictures differ
"""

import contextlib
import dataclasses
import warnings

import torch

from sige.effect import Effect
from sige.errors import RecordingError
from sige.pipelines import checks, sampling, saving
from sige.pipelines.attention_blocks import AttentionBlocks
from sige.pipelines.attention_control import AttentionControl
from sige.pipelines.editing import EditRun, NothingToEdit
from sige.pipelines.pictures import Edited, Picture
from sige.pipelines.timing import Clock
from sige.pipelines.trajectory import Trajectory, scheduler_tensors
from sige.pipelines.vae import Autoencoder, dense_macs, take_back
from sige.pipelines.wishes import read_edit
from sige.prompt_masks import prompt_mask
from sige.session import Session
from sige.state import folder as store

_TEXT = ("encoder_hidden_states", "added_cond_kwargs.text_embeds")


class PipelineSession(Session):
    """A session on a diffusers pipeline with a U-Net. ``sige.Session(pipe)`` makes one.

    policy: of the U-Net.   vae_policy: of the autoencoder's two halves, None: ``incremental``.   refresh_every: every so many commits
    the whole recording is made anew, densely, see :meth:`refresh`; None: never.   memory_budget, state_folder: as for ``Session``, for
    the U-Net's state.

    Until ``generate`` was called, ``record()`` and ``edit(mask)`` are those of a session on the U-Net.
    """

    def __init__(self, model, policy="incremental", *tiers, vae_policy=None, refresh_every=None, **settings):
        super().__init__(model, policy, *tiers, **settings)
        if refresh_every is not None:
            checks.count("refresh_every", refresh_every)
        self.pipe, self.refresh_every = model, refresh_every
        self._vae_policy = "incremental" if vae_policy is None else vae_policy
        self.vae = self.control = self.trajectory = self.request = None
        self._picture = self._pending = self._scheduler = self._control_prompts = None
        self._commits = 0

    # -- generate ----------------------------------------------------------------------------------------------------

    def generate(
        self, prompt=None, seed=0, steps=50, guidance_scale=7.5, negative_prompt=None, attention_control=False, **more
    ):
        """Make pictures and remember every step; an earlier recording is replaced once all went well. Returns a :class:`Picture`.

        prompt: text, or a list of B; None for a pipeline without text.   seed: of the noise, a list of B, or one number (picture i
        of a batch then has ``seed + i``).   attention_control: remember the attention of the first steps, for edits that hold it;
        True: of a fifth of the steps, or give their number.
        more: height, width in pixels; image, (3, H, W) or (B, 3, H, W) in [0, 1], with strength in (0, 1]: image-to-image (SDEdit);
        mask_image, bool (H, W) or (B, H, W), True where an in-painting pipeline paints; prompt_weights, {word: factor};
        further arguments of the pipeline.
        """
        request = sampling.read_request(self.pipe, prompt, seed, steps, guidance_scale, negative_prompt, **more)
        pipe, trajectory, clock = sampling.pipeline_for(self.pipe, request), Trajectory(), self._clock()
        vae = Autoencoder(getattr(self.pipe, "vae", None), self._vae_policy)
        control = None
        if attention_control:
            calls = (
                max(1, steps // 5)
                if attention_control is True
                else checks.count("attention_control", attention_control)
            )
            control = AttentionControl(self.pipe, calls=calls)
        blocks = AttentionBlocks(self.pipe, control, request)

        def after_step(pipe, number, timestep, latents):
            trajectory.add(latents, scheduler_tensors(pipe.scheduler, latents.shape), timestep)
            return latents

        with contextlib.ExitStack() as stack:
            self._time(stack, clock)
            stack.enter_context(blocks.recording() if attention_control else blocks.block("sparse"))
            stack.enter_context(Session.record(self))
            vae.record(stack, pipe, request)
            pictures = sampling.run(pipe, request, after_step)
        self.vae, self.trajectory, self.request, self._pending, self._commits = vae, trajectory, request, None, 0
        self.control, self._control_prompts = control, request.prompts
        self._scheduler = checks.fingerprint(self.pipe.scheduler)
        macs = sum(dense_macs(part) for part in (self, vae.decoder, vae.encoder) if part is not None)
        self._picture = Picture(pictures, trajectory.latents[-1], len(trajectory), clock.seconds(), macs, macs)
        return self._picture

    @property
    def original(self):
        """The picture that the next edit builds on. RecordingError before ``generate``."""
        checks.generated(self)
        return self._picture

    # -- edit --------------------------------------------------------------------------------------------------------

    def edit(self, *args, **kwargs):
        """Edit the generated pictures: see :meth:`edit_picture`. Before ``generate``: :meth:`sige.session.Session.edit`."""
        if self.trajectory is not None:
            return self.edit_picture(*args, **kwargs)
        if not isinstance(args[0] if args else kwargs.get("mask"), torch.Tensor) or "prompt" in kwargs:
            checks.generated(self)
        return Session.edit(self, *args, **kwargs)

    def edit_picture(
        self,
        prompt=None,
        mask=None,
        image=None,
        strength=None,
        dense_first=None,
        dense_last=0,
        mask_steps=None,
        attention_control=False,
        prompt_weights=None,
        steps=None,
    ):
        """Make the recorded pictures again with something changed, sparsely. Returns an :class:`Edited`; ``commit`` keeps it.

        prompt: the new text, one or a list of B; None: as it was.   mask: bool (H, W) or (B, H, W) at the latents' resolution or the
        picture's; None: where ``image`` differs visibly from the recorded picture, or else found from the prompts.   image: the
        picture with the user's changes, as for ``generate``; with ``strength``, SDEdit.   A mask given to an in-painting pipeline is
        painted into, together with what was painted before.
        dense_first: steps that run dense before the first sparse one; None: 0 with a mask, otherwise ``mask_steps[1]``.
        dense_last: steps that run dense at the end, on the whole picture.
        mask_steps: (t1, t2), the mask is found from the latents after steps t1 to t2; None: (1, a fifth of all steps), as in FISEdit.
        attention_control: hold the attention of unchanged words, as ``generate(attention_control=...)`` remembered it.
        prompt_weights: {word: factor}, re-weights words of the prompt; a list gives one for each picture.
        steps: checked against the recording, which decides.

        Where nothing changes, and where the mask is empty, the recorded picture comes back exactly, at no cost, with a warning.
        """
        checks.generated(self)
        self._drop()
        checks.same_scheduler(self._scheduler, self.pipe.scheduler, steps, self.request.steps)
        wish = read_edit(self, prompt, mask, image, strength, prompt_weights)
        if wish.reason is not None:
            return self._unchanged(wish)
        pipe, clock = sampling.pipeline_for(self.pipe, wish.request), self._clock()
        count = sampling.number_of_steps(pipe, wish.request)
        begin = checks.start_of(count, len(self.trajectory), wish.request)
        mask_steps, first = checks.schedule(wish.mask, dense_first, dense_last, mask_steps, count)

        def find(latents):
            found = prompt_mask(latents, self.trajectory.latents[begin : begin + len(latents)], steps=mask_steps)
            return found & ~torch.tensor(wish.same, device=found.device)[:, None, None]

        changed = () if all(wish.same) else tuple(name for name in _TEXT if name in self._steps[0].inputs)
        blocks = AttentionBlocks(self.pipe, self.control, wish.request, attention_control, self._control_prompts, first)
        run = EditRun(self, pipe, wish.request, wish.mask, changed, first, dense_last, find, blocks, clock)
        try:
            pictures = self._go(run, clock)
        except BaseException:
            self._forget(run)
            raise
        return self._finished(run, wish, pictures, clock)

    def _go(self, run, clock):
        """Run an edit to its end. Returns its pictures, None where the mask that was found is empty."""
        with contextlib.ExitStack() as stack:
            self._time(stack, clock)
            self.vae.edit_encoder(stack, run.pipe, run.request)
            try:
                return run.go()
            except NothingToEdit:
                getattr(run.pipe, "maybe_free_model_hooks", lambda: None)()
                return None

    def _finished(self, run, wish, pictures, clock):
        """The Edited of a run, which waits for ``commit`` from here on."""
        was, (coded, coded_dense) = self._picture, self.vae.macs(run.vae_effect)
        macs = sum(step[2] for step in run.steps) + run.blocks.macs + coded
        dense = sum(sum(step.dense_macs.values()) for step in self._steps[run.start :]) + coded_dense
        picture = (was.image, was.latents) if pictures is None else (pictures, run.trajectory.latents[-1])
        details = (run.mask, wish.source, run.effect, run.vae_effect, run.steps, wish.changes)
        edited = Edited(*picture, run.calls, clock.seconds(), macs, dense, *details)
        if pictures is None:
            _warn("the changed prompt moves nothing that a mask could hold: the recorded picture is returned")
            self._forget(run)
            run = None
        self._pending = (run, wish.kept, edited)
        return edited

    def _unchanged(self, wish):
        was = self._picture
        _warn(f"{wish.reason}: the recorded picture is returned and nothing is computed")
        mask = torch.zeros(len(was.latents), *was.latents.shape[2:], dtype=torch.bool)
        nothing = Edited(
            was.image,
            was.latents,
            0,
            {"total": 0.0},
            0,
            was.dense_macs,
            mask,
            wish.source,
            Effect(),
            None,
            [],
            wish.changes,
        )
        self._pending = (None, self.request, nothing)
        return nothing

    # -- commit and undo ---------------------------------------------------------------------------------------------

    def commit(self):
        """Make the last edit the picture that the next one builds on; its recording holds for every step then.

        Steps that ran dense before the first sparse one are carried out sparsely now, those at the end are recorded.
        """
        if self.trajectory is None:
            return Session.commit(self)
        run, request, edited = self._waiting("commit")
        if run is not None:
            try:
                self._commit_run(run)
            except BaseException:
                self._drop()
                raise
            self.trajectory, self.request = run.trajectory, request
            self._picture = Picture(*(getattr(edited, field.name) for field in dataclasses.fields(Picture)))
            self._commits += 1
        self._pending = None
        if run is not None and self.refresh_every is not None and self._commits % self.refresh_every == 0:
            self.refresh()
        return None

    def _commit_run(self, run):
        if run.first_calls:
            last = run.start + len(run.first_calls)
            again = Session.edit(self, run.call_mask(), run.changed, run.start, range(last, run.total), resume=True)
            with run.blocks.block("replay"), again, torch.no_grad():
                for step, (args, kwargs) in enumerate(run.first_calls):
                    args, kwargs = run.blended(run.start + step, args, kwargs)
                    self.model(*args, **kwargs)
        with run.blocks.block("sparse"):
            Session.commit(self)
        self.vae.commit()
        if run.blocks.commit():
            self._control_prompts = run.request.prompts

    def undo(self):
        """Take the last edit back: everything remembered is again what it was, bit for bit."""
        if self.trajectory is None:
            return Session.undo(self)
        self._waiting("undo")
        self._drop()
        return None

    def refresh(self):
        """Record every step anew, densely, on the latents and prompts that the recording has by now.

        Committed edits leave small errors in what is remembered; this removes them. The picture becomes the decoder's dense one.
        """
        checks.generated(self)
        self._drop()
        calls, blocks = [step.inputs for step in self._steps], AttentionBlocks(self.pipe, None, self.request)
        with blocks.block("sparse"), Session.record(self), torch.no_grad():
            for inputs in calls:
                self.model(**_nested(inputs))
        if self.vae.decoder is not None:
            self._picture = dataclasses.replace(self._picture, image=self.vae.refresh())

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder, extra=None):
        """Write everything to a folder, crash-safely: see :meth:`sige.session.Session.save`. ``sige.pipelines.reopen`` reads it.

        RecordingError while an edit waits for ``commit`` or ``undo``; StorageError when the disk is full.
        """
        if self.trajectory is None:
            return Session.save(self, folder, extra)
        if self._pending is not None:
            raise RecordingError("the last edit is neither committed nor taken back: commit() or undo() before saving")
        store.save(folder, *saving.pack(self, self.extra if extra is None else extra))
        return None

    def _reopen(self, folder):
        device = next(self.model.parameters()).device
        steps, extra = self._open(folder, device)
        if not isinstance(extra, dict) or "pipeline" not in extra:
            return Session._reopen(self, folder)
        self.close()
        saving.unpack(self, folder, steps, extra, device)
        return None

    def close(self):
        """Forget everything."""
        super().close()
        for part in (self.vae, self.control):
            if part is not None:
                part.close()
        self.vae = self.control = self.trajectory = self.request = self._picture = self._pending = None

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def _waiting(self, verb):
        if self._pending is None:
            raise RecordingError(f"there is no edit to {verb}: it was committed, taken back already, or never made")
        return self._pending

    def _drop(self):
        """Take back an edit that waits, where there is one."""
        if self._pending is not None:
            self._forget(self._pending[0])
            self._pending = None

    def _forget(self, run):
        """Take back whatever a run left in the recordings."""
        take_back(self)
        self.vae.undo()
        if run is not None:
            run.blocks.undo()

    def _clock(self):
        return Clock(next(self.model.parameters()).device)

    def _time(self, stack, clock):
        stack.enter_context(clock.part("total"))
        stack.enter_context(clock.calls("unet", self.model))
        vae = getattr(self.pipe, "vae", None)
        if vae is not None:
            stack.enter_context(clock.calls("encode", vae.encoder))
            stack.enter_context(clock.calls("decode", vae.decoder))


def _nested(inputs):
    """Inputs by name as keyword arguments: ``{"a.b": x}`` becomes ``{"a": {"b": x}}``."""
    found = {}
    for name, value in inputs.items():
        *outer, last = name.split(".")
        place = found
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def _warn(message):
    warnings.warn(message, stacklevel=5)
