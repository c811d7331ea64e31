"""Sessions on pipelines without a U-Net, such as PixArt's: their transformer is followed, as a model by itself would be.

session = sige.Session(pipe)
with session.record():
    before = pipe("a dog", latents=noise)
with session.edit(mask):                 # latents outside the mask must be the recording's at every step: put them back there
    after = pipe("a dog", latents=other, callback=put_back)
"""

from sige.errors import ModelError
from sige.session import Session


class TransformerSession(Session):
    """A session on the transformer of a diffusers pipeline. ``sige.Session(pipe)`` makes one.

    ``record()``, ``edit(mask)`` and all that goes with them are those of a session on ``pipe.transformer``; what a session on a
    pipeline with a U-Net does beyond that is refused with a ModelError that says what to do.
    """

    def __init__(self, model, policy=None, *args, **settings):
        super().__init__(model, "tokens" if policy is None else policy, *args, **settings)
        self._kind = type(model).__name__

    def edit(self, mask=None, *args, **kwargs):
        """:meth:`sige.session.Session.edit`. ModelError for an edit by prompt or picture."""
        if mask is None or isinstance(mask, str) or {"prompt", "image"} & set(kwargs):
            self._refuse("edit() by prompt or picture needs")
        return super().edit(mask, *args, **kwargs)

    def generate(self, *args, **kwargs):
        """ModelError: see :meth:`sige.pipelines.session.PipelineSession.generate`, for pipelines with a U-Net."""
        self._refuse("generate() needs")

    def refresh(self):
        """ModelError: see :meth:`sige.pipelines.session.PipelineSession.refresh`, for pipelines with a U-Net."""
        self._refuse("refresh() needs")

    def _refuse(self, what):
        raise ModelError(
            f"{self._kind} has no U-Net, which {what}: call the pipeline inside session.record() and again inside "
            "session.edit(mask), on this session or on one of pipe.transformer"
        )
