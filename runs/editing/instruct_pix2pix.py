"""InstructPix2Pix: a model trained to follow an instruction on a given picture (Brooks et al., CVPR 2023).

Its U-Net sees the original's latents in four more channels, and each step has three branches of guidance: text and picture, picture
alone, neither. The original (task.image) is given.
"""

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "instruct"
OPTIONS = {
    "instruction": None,  # what to do to the picture, "put a hat on the dog"; None: the new prompt serves for it
    "image_guidance_scale": 1.5,  # how much the original counts, the pipeline's own setting
}


def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock pipeline: ``steps`` U-Net calls of a batch of three."""
    pictures.check(pipe, KIND, "instruct_pix2pix")
    chosen = pictures.settings(task, OPTIONS, "instruct_pix2pix")
    before = pictures.given(task, "instruct_pix2pix")
    with Meter(pipe) as meter, meter.part("edit"):
        after = pipe(
            chosen["instruction"] or task.new_prompt,
            image=before[None],
            image_guidance_scale=chosen["image_guidance_scale"],
            **pictures.sampling(task),
        ).images[0]
    return pictures.result(meter, before, after)
