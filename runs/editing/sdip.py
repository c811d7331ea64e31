"""SDIP: an in-painting model fills the mask that FISEdit finds, by the new prompt.

The mask (task.mask) and the original (task.image) are given: an in-painting model can make neither. Its U-Net takes nine channels
and was trained for it.
"""

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "inpaint"
OPTIONS = {}


def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock in-painting pipeline: ``steps`` U-Net calls of a batch of two, whatever the mask."""
    pictures.check(pipe, KIND, "sdip")
    pictures.settings(task, OPTIONS, "sdip")
    before = pictures.given(task, "sdip")
    hole = _as_picture(pictures.given_mask(task, pipe, "sdip"), pipe.vae_scale_factor)
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


def _as_picture(mask, reduction):
    """A mask of latents at the picture's resolution, float (1, 1, H, W)."""
    return mask.float().repeat_interleave(reduction, 0).repeat_interleave(reduction, 1)[None, None]
