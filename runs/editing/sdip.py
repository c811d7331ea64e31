"""SDIP: an in-painting model fills the mask that FISEdit finds, by the new prompt.

The mask (task.mask) and the original (task.image) are given: an in-painting model can make neither. Its U-Net takes nine channels
and was trained for it.
"""

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask
from sige.runs.errors import UserError

KIND = "inpaint"
OPTIONS = {}


def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock in-painting pipeline: ``steps`` U-Net calls of a batch of two, whatever the mask."""
    pictures.check(pipe, KIND, "sdip")
    pictures.settings(task, OPTIONS, "sdip")
    before = pictures.given(task, "sdip")
    hole = as_picture(task, pipe)
    with Meter(pipe) as meter, meter.part("edit"):
        after = pipe(
            task.new_prompt,
            image=before[None],
            mask_image=hole,
            strength=1.0,
            **pictures.size(task),
            **pictures.sampling(task),
        ).images[0]
    return pictures.result(meter, before, after, task.mask)


def as_picture(task: EditTask, pipe):
    """The mask at the picture's resolution, float (1, 1, H, W); UserError where it is missing or of another size."""
    reduction = pipe.vae_scale_factor
    expected = (task.height // reduction, task.width // reduction)
    if task.mask is None:
        raise UserError("sdip fills a mask and finds none; give task.mask, such as FISEdit's mask of the same edit.")
    if tuple(task.mask.shape) != expected:
        raise UserError(
            f"the mask of sdip has shape {tuple(task.mask.shape)}; give {expected}, the latents' resolution."
        )
    return task.mask.float().repeat_interleave(reduction, 0).repeat_interleave(reduction, 1)[None, None]
