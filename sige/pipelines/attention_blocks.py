"""When an edit holds or re-weights attention: which block of AttentionControl is open in which steps.

| steps | with attention control | without, maps remembered | weights alone |
|---|---|---|---|
| dense first | maps put back, new ones kept | new ones kept | words re-weighted |
| dense first, of an edit that begins behind the first step | maps put back | words re-weighted | words re-weighted |
| sparse, no dense step before | maps put back | | words re-weighted |
| sparse behind dense ones | words re-weighted | words re-weighted | words re-weighted |
| dense first ones carried out sparsely by ``commit`` | maps put back | | words re-weighted |
"""

import contextlib

from sige.errors import RecordingError
from sige.pipelines import checks
from sige.pipelines.attention_control import AttentionControl
from sige.pipelines.prompts import compare, token_weights
from sige.pipelines.sampling import arguments


class AttentionBlocks:
    """The blocks of one edit, or of a recording.

    control: AttentionControl with or without maps, or None.   request: what is asked for.   controlled: whether to put maps back.
    base: prompts that the maps are of.   dense_first: number of dense steps before sparse ones.   start: the recorded step that the
    edit begins with.
    """

    def __init__(self, pipe, control, request, controlled=False, base=None, dense_first=0, start=0):
        self.control, self.batch, self.controlled, self.dense_first = control, request.batch, controlled, dense_first
        self.start = start
        self.factors = factors_of(pipe, request)
        self.macs, self.kept = 0, False
        self._maps = control is not None and control.recorded_calls > 0
        if controlled and not self._maps:
            raise RecordingError(
                "no attention is remembered to hold: generate(..., attention_control=True) before edit(..., attention_control=True)"
            )
        if controlled and start >= control.recorded_calls:
            raise RecordingError(
                f"attention is remembered of the first {control.recorded_calls} steps, this edit begins at step {start + 1}: "
                f"generate(..., attention_control={start + 1}) or more before, or edit with a greater strength"
            )
        if control is None and self.factors is not None:
            self.control = AttentionControl(pipe, calls=0)
        self._changes = None
        if self._maps:
            self._changes = [compare(pipe.tokenizer, old, new) for old, new in zip(base, request.prompts, strict=True)]

    @contextlib.contextmanager
    def block(self, phase, first=None):
        """The block for ``dense`` steps, ``sparse`` ones or a ``replay`` of the dense ones by ``commit``.

        first: the recorded step that its first call repeats; None: the one that the edit begins with.
        """
        with self._block(phase, self.start if first is None else first):
            yield
        if self.control is not None:
            self.macs += self.control.macs

    def _block(self, phase, first):
        if phase == "dense" and self._maps and self.start == 0:
            self.kept = True
            changes = self._changes if self.controlled else [None] * self.batch
            return self.control.injecting(changes, weights=self._weights(), keep=True)
        if self.controlled and (phase in ("dense", "replay") or not self.dense_first):
            return self.control.injecting(self._changes, weights=self._weights(), first=first)
        if self.factors is not None:
            return self.control.weighting(self._weights(), samples=self.batch)
        return contextlib.nullcontext()

    def recording(self):
        """The block of a recording whose first calls' attention is remembered."""
        return self.control.recording(samples=self.batch, weights=self._weights())

    def put_back(self, mask):
        """Outside the mask (B, h, w) of the edit the maps that were kept become the recording's: there the picture is."""
        if self.kept:
            self.control.put_back(mask, self._changes)

    def commit(self):
        """The maps that were kept become those that the next edit starts from. Returns whether there are any."""
        if self.kept:
            self.control.commit()
        return self.kept

    def undo(self):
        """Drop the maps that were kept."""
        if self.kept:
            self.control.undo()

    def _weights(self):
        return [None] * self.batch if self.factors is None else self.factors


def control_for(pipe, wanted, steps):
    """The AttentionControl that ``generate(attention_control=wanted)`` asks for: of a fifth of the steps, or of a number; or None."""
    if wanted is False:
        return None
    calls = max(1, steps // 5) if wanted is True else checks.count("attention_control", wanted)
    branch = 0 if "image_guidance_scale" in arguments(pipe) else -1  # InstructPix2Pix puts the prompt's branch first
    return AttentionControl(pipe, calls=calls, branch=branch)


def factors_of(pipe, request):
    """The factor of each token position, a tuple for each picture, None for one without weights; None where no picture has any."""
    if not request.weights or not any(request.weights):
        return None
    pairs = zip(request.prompts, request.weights, strict=True)
    return [token_weights(pipe.tokenizer, prompt, weights) if weights else None for prompt, weights in pairs]
