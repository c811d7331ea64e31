"""What every method does with a pipeline: its class checked, the original made, pictures to latents and back, prompts to text."""

import torch

from sige.runs.editing.meter import Meter
from sige.runs.editing.task import ORIGINAL, EditResult, EditTask
from sige.runs.errors import UserError

_CLASSES = {
    "text": "StableDiffusionPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "instruct": "StableDiffusionInstructPix2PixPipeline",
}


def check(pipe, kind: str, method: str) -> None:
    """UserError for a pipeline of another class than the method runs."""
    if type(pipe).__name__ != _CLASSES[kind]:
        raise UserError(f"{method} runs a {_CLASSES[kind]}, not a {type(pipe).__name__}.")


def settings(task: EditTask, defaults: dict, method: str) -> dict:
    """The method's settings: those of the task over ``defaults``; UserError for a name that the method does not have."""
    for name in task.options:
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise UserError(f"{method} has no option {name!r}; it has {known}.")
    chosen = {**defaults, **task.options}
    if task.strength is not None and "strength" in defaults:
        chosen["strength"] = task.strength
    return chosen


def generator(task: EditTask) -> torch.Generator:
    """Random numbers of the task's seed, on the CPU: the same start noise on every device."""
    return torch.Generator().manual_seed(task.seed)


def sampling(task: EditTask) -> dict:
    """What every stock pipeline is told: seed, steps, guidance; the picture comes back as a tensor."""
    return {
        "num_inference_steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "generator": generator(task),
        "output_type": "pt",
    }


def size(task: EditTask) -> dict:
    """Height and width, for pipelines that do not take them from a picture."""
    return {"height": task.height, "width": task.width}


def original(pipe, task: EditTask, meter: Meter) -> torch.Tensor:
    """The picture to edit, (3, H, W): the task's, or what the text-to-image pipeline makes of the old prompt."""
    if task.image is not None:
        return task.image
    with meter.part(ORIGINAL):
        return pipe(task.prompt, **size(task), **sampling(task)).images[0]


def given(task: EditTask, method: str) -> torch.Tensor:
    """The task's picture, for methods whose pipeline cannot make it."""
    if task.image is None:
        raise UserError(
            f"{method} cannot make the picture that it edits; give task.image, made by the text-to-image pipeline."
        )
    return task.image


def given_mask(task: EditTask, pipe, method: str) -> torch.Tensor:
    """The task's mask, for methods that change a given region; UserError where it is missing or of another size."""
    expected = (task.height // pipe.vae_scale_factor, task.width // pipe.vae_scale_factor)
    if task.mask is None:
        raise UserError(f"{method} fills a mask and finds none; give task.mask, such as FISEdit's of the same edit.")
    if tuple(task.mask.shape) != expected:
        raise UserError(
            f"the mask of {method} has shape {tuple(task.mask.shape)}; give {expected}, the latents' resolution."
        )
    return task.mask


def result(meter: Meter, before: torch.Tensor, after: torch.Tensor, mask=None, latents=None) -> EditResult:
    """What a method returns; pictures on the CPU in float32."""
    before, after = (picture.detach().float().cpu() for picture in (before, after))
    return EditResult(before, after, mask, meter.calls, meter.seconds, latents)


# -- for methods with a sampling loop of their own -----------------------------------------------------------------------


def encoded(pipe, picture: torch.Tensor) -> torch.Tensor:
    """Latents (1, C, h, w) of a picture (3, H, W) in [0, 1]: the means that the autoencoder gives."""
    pixels = (picture[None] * 2 - 1).to(pipe.unet.dtype).to(pipe.device)
    return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


def decoded(pipe, latents: torch.Tensor) -> torch.Tensor:
    """The picture (3, H, W) in [0, 1] of latents (1, C, h, w)."""
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return (pixels[0] / 2 + 0.5).clamp(0, 1)


def texts(pipe, *prompts: str) -> torch.Tensor:
    """Text encodings (n, tokens, width) of prompts, one row each."""
    return torch.cat([pipe.encode_prompt(prompt, pipe.device, 1, False)[0] for prompt in prompts])


def guided(prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance of a prediction whose first half was made without the prompt."""
    without, with_text = prediction.chunk(2)
    return without + scale * (with_text - without)
