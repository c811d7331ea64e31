"""What a session says of its state and does with it as a whole: bytes by kind, by type and by tier, saving and loading."""

import torch

from sige import guards
from sige.errors import RecordingError, StorageError
from sige.masks import check_mask
from sige.state import folder as store
from sige.state import travel
from sige.state.tiers import working_bytes


class Remembered:
    """The part of a :class:`~sige.session.Session` that knows where its state is."""

    def state_bytes(self, by="kind"):
        """Bytes remembered over all steps, by ``kind``, or by the ``dtype`` that they are stored in."""
        total, seen = {}, set()
        for step in self._steps:
            for name, size in step.bytes_by(by, seen).items():
                total[name] = total.get(name, 0) + size
        return total

    def save(self, folder, extra=None):
        """Write the recording to a folder: every byte is on the disk before it takes the place of what was saved there before.

        extra: a nest of tensors, numbers and text to keep with it; ``load`` gives it back as ``session.extra``. RecordingError
        while an edit is neither committed nor taken back; StorageError when the disk is full, the folder then is as it was.
        """
        if not self._steps:
            raise RecordingError("nothing is recorded yet: run the model once inside session.record() before saving")
        if self._edited:
            raise RecordingError("the last edit is neither committed nor taken back: commit() or undo() before saving")
        for step in self._steps:
            step.check_untouched()
        self._tiers.wait()
        store.save(folder, self._steps, self._settings(), self.extra if extra is None else extra)

    def _settings(self):
        """What a session of the same kind is made with, and the model that it is for."""
        return {
            "policy": self.policy,
            "token_grid": self.token_grid,
            "model": store.fingerprint(self.model),
            "replay": self._wants_replay,
        }

    @classmethod
    def load(cls, folder, model, memory_budget=None, state_folder=None, replay=None, cuda_graphs=False):
        """The session that was saved in a folder, for the same model. Edits of it give the same bits as edits of the one saved.

        memory_budget, state_folder, cuda_graphs: as for ``sige.Session``, and replay; None: what the session that was saved had. Steps
        of a folder that an earlier release wrote are not replayed. StorageError naming the file that is missing, truncated or altered,
        or the model that is another one.
        """
        settings = store.settings_of(folder)
        replay = settings.get("replay", True) if replay is None else replay
        tiers = memory_budget, state_folder
        session = cls(model, settings["policy"], settings["token_grid"], *tiers, replay=replay, cuda_graphs=cuda_graphs)
        session._reopen(folder)
        return session

    def _reopen(self, folder):
        """Take the recording from a folder in place of this session's own."""
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        steps, extra = self._open(folder, device)
        self.close()
        for number, step in enumerate(steps):
            self._tiers.settle(number, step, device)
            self._steps.append(step)
        self.extra = extra

    def _open(self, folder, device):
        """(iterator of the steps, extra) of a saved recording of this very model, tensors on ``device``."""
        steps, settings, extra = store.load(folder, lambda tensor: tensor.to(device, copy=True))
        if settings["model"] != store.fingerprint(self.model):
            raise StorageError(
                f"{folder} was recorded with the model {settings['model']}, this one is {store.fingerprint(self.model)}: load it with "
                "the model and the weights that it was recorded with"
            )
        if "pipeline" in settings and not hasattr(self, "pipe"):
            raise StorageError(
                f"{folder} holds a session on a {settings['pipeline']}: load it with such a pipeline, not with its model alone"
            )
        return steps, extra

    def state_tiers(self):
        """Bytes remembered over all steps by tier: ``device`` (not on a CPU), ``host`` memory, ``disk``."""
        return self._tiers.bytes()

    @property
    def least_budget(self):
        """The least ``memory_budget`` that this recording could have; twice as much lets the next step load while one runs."""
        return max(map(working_bytes, self._steps), default=0)

    @property
    def prefetch(self):
        """Whether an edit loads the maps of its next step while a step runs; turn it off before an edit to see what that gives."""
        return self._tiers.prefetch

    @prefetch.setter
    def prefetch(self, wanted):
        self._tiers.prefetch = bool(wanted)

    @property
    def waited(self):
        """Seconds that edits of this recording have waited for maps to be loaded (on a GPU the device waits, and this stays 0)."""
        return self._tiers.waited

    def travel_bytes(self, mask):
        """Bytes that an edit of ``mask`` reads of what is remembered, over all steps, by kind: see ``sige.state.travel``."""
        return travel.bytes_by_kind(self._steps, self._plan(guards.fit_mask(check_mask(mask), self._steps[0].inputs)))
