"""The autoencoder's part of a session: decoder and encoder, each followed by a session of its own inside the pipeline's run.

The pipeline calls its autoencoder as ever; what is recorded and edited is the bulk of it, ``vae.decoder`` and ``vae.encoder``.
The 1x1 convolution between each of them and the latents runs whole: 64 multiply-accumulates a latent at most.
"""

import torch

from sige.errors import ModelError
from sige.pipelines.editing import BlendInput, quiet_where_empty, recorded_input
from sige.pipelines.trajectory import put_back
from sige.session import Session


class Autoencoder:
    """Recordings of the two halves. Without an autoencoder (``vae`` None) everything here does nothing.

    policy: of both halves.   decoder: Session, None without an autoencoder.   encoder: Session, None until a picture was encoded.
    """

    def __init__(self, vae, policy):
        if vae is not None and (getattr(vae, "use_slicing", False) or getattr(vae, "use_tiling", False)):
            raise ModelError(
                "the autoencoder works in slices or tiles, so that no call has the whole picture: call vae.disable_slicing() and "
                "vae.disable_tiling()"
            )
        self.vae, self.policy = vae, policy
        self.decoder = None if vae is None else Session(vae.decoder, policy)
        self.encoder, self.encoded = (
            None,
            None,
        )  # encoded: (kind of run, image, mask_image) that the encoder's recording is of
        self._coming = None  # the encoder and what it encoded in the edit that waits, its Effect

    def record(self, stack, pipe, request):
        """Record both halves, the encoder where the request has a picture, until ``stack`` is closed."""
        if self.vae is not None:
            stack.enter_context(self.decoder.record())
            if request.image is not None:
                self.encoder, self.encoded = Session(self.vae.encoder, self.policy), _encoded(pipe, request)
                stack.enter_context(self.encoder.record())

    def edit_decoder(self, stack, mask):
        """Decode sparsely until ``stack`` is closed: latents differ inside ``mask`` (B, h, w). Returns the Effect."""
        effect = stack.enter_context(self.decoder.edit(mask))
        recorded = recorded_input(self.decoder, 0)
        hook = BlendInput(lambda now: put_back(mask, now, recorded))
        stack.callback(self.vae.decoder.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return effect

    def edit_encoder(self, stack, pipe, request):
        """Encode sparsely where the request's picture differs from the one encoded before; the first one is recorded."""
        if self.vae is None or request.image is None:
            return
        now = _encoded(pipe, request)
        if self.encoder is None or now[0] != self.encoded[0] or now[1].shape != self.encoded[1].shape:
            encoder, effect = Session(self.vae.encoder, self.policy), None
            stack.enter_context(encoder.record())
        else:
            differs = (now[1] != self.encoded[1]).any(1)
            if now[2] is not None:
                differs |= now[2] != self.encoded[2]
            encoder = self.encoder
            stack.enter_context(quiet_where_empty())
            # Pipelines encode the pictures of a batch one by one, or all at once: one mask holds for both.
            effect = stack.enter_context(encoder.edit(differs.any(0)))
        self._coming = (encoder, now, effect)

    def macs(self, effect):
        """(executed, of a dense run) multiply-accumulates of an edit: ``effect`` is the decoder's, None where nothing was decoded."""
        if self.vae is None:
            return 0, 0
        done, whole = 0 if effect is None else effect.macs, dense_macs(self.decoder)
        if self._coming is not None:
            encoder, _, encoded = self._coming
            done += dense_macs(encoder) if encoded is None else encoded.macs
            whole += dense_macs(encoder)
        return done, whole

    def prepare(self):
        """Do what can fail of ``commit``: record anew what ran dense. Returns a function that puts the recordings back."""
        before = []

        def put_back():
            for step, was in before:
                step.__dict__.update(was)

        try:
            for session in (self.decoder, self.encoder):
                if session is not None and any(again is not None for *_, again in session._edited):
                    before += [(step, dict(step.__dict__)) for step, *_ in session._edited]
                    session._record_anew([(step, again) for step, _, _, again in session._edited if again is not None])
                    session._edited = [
                        (step, step.inputs, step.output, None) if again is not None else (step, inputs, output, None)
                        for step, inputs, output, again in session._edited
                    ]
        except BaseException:
            put_back()
            raise
        return put_back

    def commit(self):
        """The pictures of the last edit become those that the next one differs from. Nothing can fail after ``prepare``."""
        if self.vae is not None:
            self.decoder.commit()
            if self._coming is not None:
                self.encoder, self.encoded, effect = self._coming
                self._coming = None
                if effect is not None:
                    self.encoder.commit()

    def undo(self):
        """Take back what the last edit did, if there is any."""
        self._coming = None
        for session in (self.decoder, self.encoder):
            take_back(session)

    def refresh(self):
        """Record the decoder anew on the latents that it has by now. Returns their pictures, float32 (B, 3, H, W) in [0, 1]."""
        latents = recorded_input(self.decoder, 0)
        with self.decoder.record(), torch.no_grad():
            pictures = self.vae.decoder(latents)
        return (pictures / 2 + 0.5).clamp(0, 1).float()

    def state_bytes(self):
        """Bytes remembered of both halves, by kind."""
        total = {}
        for session in (self.decoder, self.encoder):
            for kind, size in session.state_bytes().items() if session is not None else ():
                total[kind] = total.get(kind, 0) + size
        return total

    def close(self):
        """Forget everything."""
        for session in (self.decoder, self.encoder):
            if session is not None:
                session.close()


def _encoded(pipe, request):
    whole = (
        request.strength is None or request.strength == 1
    )  # in-painting encodes the picture itself only below full strength
    return f"{type(pipe).__name__}, {'whole' if whole else 'part'}", request.image, request.mask_image


def dense_macs(session):
    """Multiply-accumulates of everything that a session recorded, as dense forwards."""
    return sum(sum(step.dense_macs.values()) for step in session._steps)


def take_back(session):
    """Undo a session's last edit where it has one."""
    if session is not None and session._edited:
        Session.undo(session)
