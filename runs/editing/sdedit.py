"""SDEdit: the original, noised up to a share of the steps, denoised by the new prompt (Meng et al., ICLR 2022)."""

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "text"
OPTIONS = {"strength": 0.8}  # share of the steps that are run; more changes the picture more


def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock image-to-image pipeline on the same parts: floor(steps x strength) U-Net calls of a batch of two."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pictures.check(pipe, KIND, "sdedit")
    chosen = pictures.settings(task, OPTIONS, "sdedit")
    image_to_image = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    image_to_image.set_progress_bar_config(disable=True)
    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
        with meter.part("edit"):
            after = image_to_image(
                task.new_prompt, image=before[None], strength=chosen["strength"], **pictures.sampling(task)
            ).images[0]
    return pictures.result(meter, before, after)
