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

from sige.errors import RecordingError
from sige.pipelines import checks, sampling, saving
from sige.pipelines.attention_blocks import AttentionBlocks, control_for
from sige.pipelines.editing import EditRun, recorded_call
from sige.pipelines.pictures import Edited, Picture, picture_of, unchanged
from sige.pipelines.timing import watch
from sige.pipelines.trajectory import Trajectory, scheduler_tensors
from sige.pipelines.vae import Autoencoder, dense_macs, take_back
from sige.pipelines.wishes import read_edit
from sige.prompt_masks import prompt_mask
from sige.session import Session
from sige.state import folder as store

_TEXT = ("encoder_hidden_states", "added_cond_kwargs.text_embeds")


class PipelineSession(Session):
    """A session on a diffusers pipeline with a U-Net. ``sige.Session(pipe)`` makes one.

    policy: of the U-Net.   vae_policy: of the autoencoder's two halves, None: ``incremental``; ``dense`` remembers nothing of them.
    refresh_every: every so many commits everything is recorded anew, see :meth:`refresh`; None: never.   memory_budget, state_folder:
    as for ``Session``, for the U-Net's state.

    request, trajectory: what the recorded pictures were asked by, and their latents after each step; None before ``generate``.
    vae: recordings of the autoencoder, ``session.vae.state_bytes()``.   control: the AttentionControl, None without.

    Until ``generate`` was called, ``record()`` and ``edit(mask)`` are those of a session on the U-Net.
    """

    def __init__(self, model, policy="incremental", *tiers, vae_policy=None, refresh_every=None, **settings):
        super().__init__(model, policy, *tiers, **settings)
        if refresh_every is not None:
            checks.count("refresh_every", refresh_every)
        self.pipe, self.refresh_every = model, refresh_every
        self._vae_policy = "incremental" if vae_policy is None else vae_policy
        self._forget_picture()

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
        pipe, trajectory = sampling.pipeline_for(self.pipe, request), Trajectory()
        vae = Autoencoder(getattr(self.pipe, "vae", None), self._vae_policy)
        control = control_for(self.pipe, attention_control, steps)
        blocks = AttentionBlocks(self.pipe, control, request)

        def after_step(pipe, number, timestep, latents):
            history = scheduler_tensors(pipe.scheduler, latents.shape)
            trajectory.add(latents, history, timestep, request.text)
            return latents

        with contextlib.ExitStack() as stack:
            clock = watch(stack, self.model, vae.vae)
            stack.enter_context(blocks.block("sparse") if control is None else blocks.recording())
            stack.enter_context(Session.record(self))
            vae.record(stack, pipe, request)
            pictures = sampling.run(pipe, request, after_step)
        self._forget_picture()
        self.vae, self.trajectory, self.request = vae, trajectory, request
        self.control, self._control_prompts = control, request.prompts
        self._scheduler = checks.fingerprint(self.pipe.scheduler)
        macs = sum(dense_macs(part) for part in (self, vae.decoder, vae.encoder) if part is not None)
        self._picture = Picture(pictures, trajectory.latents[-1], len(trajectory), clock.seconds(), macs, macs)
        return self._picture

    @contextlib.contextmanager
    def record(self):
        """:meth:`sige.session.Session.record` of the U-Net. A generated picture is forgotten once the block ends well."""
        with Session.record(self):
            yield self
        self._forget_picture()

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
            _warn(f"{wish.reason}: the recorded picture is returned and nothing is computed")
            self._pending = (None, self.request, unchanged(self._picture, wish))
            return self._pending[2]
        request, pipe = wish.request, sampling.pipeline_for(self.pipe, wish.request)
        count = sampling.number_of_steps(pipe, request)
        start = checks.start_of(count, len(self.trajectory), request)
        mask_steps, first = checks.schedule(wish.mask, dense_first, dense_last, mask_steps, count)

        def find(latents):
            found = prompt_mask(latents, self.trajectory.latents[start : start + len(latents)], steps=mask_steps)
            return found & ~torch.tensor(wish.same, device=found.device)[:, None, None]

        other_text = any(text != request.text for text in self.trajectory.texts[start:])
        changed = tuple(name for name in _TEXT if other_text and name in self._steps[0].inputs)
        blocks = AttentionBlocks(
            self.pipe, self.control, request, attention_control, self._control_prompts, first, start
        )
        run = EditRun(self, pipe, request, start, wish.mask, changed, first, dense_last, find, blocks)
        try:
            pictures = run.go()
        except BaseException:
            self._forget(run)
            raise
        return self._finished(run, wish, pictures)

    def _finished(self, run, wish, pictures):
        """The Edited of a run, which waits for ``commit`` from here on."""
        was, (coded, coded_dense) = self._picture, self.vae.macs(run.vae_effect)
        macs = sum(step[2] for step in run.steps) + run.blocks.macs + coded
        dense = sum(sum(step.dense_macs.values()) for step in self._steps[run.start :]) + coded_dense
        picture = (was.image, was.latents) if pictures is None else (pictures, run.trajectory.latents[-1])
        details = (run.mask, wish.source, run.effect, run.vae_effect, run.steps, wish.changes)
        edited = Edited(*picture, run.calls, run.clock.seconds(), macs, dense, *details)
        self._pending = (run, wish.kept, edited)
        if pictures is None:
            _warn("the changed prompt moves nothing that a mask could hold: the recorded picture is returned")
            self._forget(run)
            self._pending = (None, self.request, edited)
        return edited

    # -- commit and undo ---------------------------------------------------------------------------------------------

    def commit(self):
        """Make the last edit the picture that the next one builds on; its recording holds for every step then.

        Steps that ran dense before the first sparse one are carried out sparsely now, those that ran dense at the end are recorded.
        Returns the multiply-accumulates of that, and of a refresh if one was due.
        """
        if self.trajectory is None:
            return Session.commit(self)
        run, request, edited = self._waiting("commit")
        macs = 0
        if run is not None:
            try:
                macs = run.commit()
            except BaseException:
                self._drop()
                raise
            self.trajectory, self.request, self._picture = run.trajectory, request, picture_of(edited)
            if run.blocks.commit():
                self._control_prompts = run.request.prompts
            self._commits += 1
        self._pending = None
        if run is not None and self.refresh_every is not None and self._commits % self.refresh_every == 0:
            macs += self.refresh()
        return macs

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
        An edit that waits is taken back. Returns the multiply-accumulates.
        """
        checks.generated(self)
        self._drop()
        calls = [recorded_call(self, number) for number in range(self.recorded_steps)]
        with AttentionBlocks(self.pipe, None, self.request).block("sparse"), Session.record(self), torch.no_grad():
            for call in calls:
                self.model(**call)
        macs = dense_macs(self)
        if self.vae.decoder is not None:
            self._picture = dataclasses.replace(self._picture, image=self.vae.refresh())
            macs += dense_macs(self.vae.decoder)
        return macs

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
        self._forget_picture()

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

    def _forget_picture(self):
        self.vae = self.control = self.trajectory = self.request = None
        self._picture = self._scheduler = self._control_prompts = None
        self._pending, self._commits = None, 0  # _pending: (EditRun or None, Request after commit, Edited)


def _warn(message):
    warnings.warn(message, stacklevel=4)
