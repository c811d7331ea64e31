"""DiffEdit: a mask where two prompts ask for different noise, then denoising inside it (Couairon et al., ICLR 2023).

1. The picture's latents, noised by half, are given to the U-Net with the old and with the new prompt, for a number of noises.
   Where the two estimates differ, averaged and cut at half of their range, is the mask.
2. DDIM backwards with the old prompt, up to ``strength`` of the steps.
3. DDIM forwards with the new prompt and guidance; outside the mask the latents of step 2 are put back after every step.

diffusers keeps its own class only as a deprecated one, so this is a compact one of ours on a stock pipeline's parts. It makes ``maps``
calls of a batch of two, and floor(steps x strength) of one and as many of two rows. The paper's row is the plain pipeline's times
1.6, two times 0.8, which leaves out the mask's calls and takes a step backwards for as dear as one forwards, though it needs no
guidance and diffusers gives it none.
"""

import torch

from sige.runs.editing import inversion, pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "text"
OPTIONS = {
    "strength": 0.8,  # share of the steps that are run backwards and forwards again
    "maps": 10,  # noises that the mask is averaged over
    "mask_strength": 0.5,  # how far the latents are noised for the mask, as a share of the steps
    "outliers": 3.0,  # differences are cut at this multiple of their mean
    "threshold": 0.5,  # of the remaining range
    "given_mask": False,  # take the task's mask in place of one of its own: no call is made for the mask then
}


@torch.no_grad()
def edit(pipe, task: EditTask) -> EditResult:
    """The edit inside a mask of its own, or with ``given_mask`` inside that of the task."""
    pictures.check(pipe, KIND, "diffedit")
    chosen = pictures.settings(task, OPTIONS, "diffedit")
    forwards, backwards = inversion.schedulers(pipe, task.steps)
    count = max(1, int(task.steps * chosen["strength"]))
    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
        clean = pictures.encoded(pipe, before)
        old, new, empty = pictures.texts(pipe, task.prompt, task.new_prompt, "").split(1)
        if chosen["given_mask"]:
            mask = pictures.given_mask(task, pipe, "diffedit")
        else:
            with meter.part("mask"):
                mask = find_mask(pipe, task, clean, torch.cat([old, new]), forwards, chosen)
        mask = mask.to(clean.device)
        with meter.part("invert"):
            levels = inversion.run(pipe, clean, old, backwards, count)
        with meter.part("edit"):
            latents = levels.pop()
            for timestep in forwards.timesteps[-count:]:
                both = pipe.unet(
                    torch.cat([latents] * 2), timestep, encoder_hidden_states=torch.cat([empty, new])
                ).sample
                prediction = pictures.guided(both, task.guidance_scale)
                free = forwards.step(prediction, timestep, latents).prev_sample
                latents = torch.where(mask, free, levels.pop())
            after = pictures.decoded(pipe, latents)
    return pictures.result(meter, before, after, mask.cpu(), latents)


def find_mask(pipe, task, clean, texts, scheduler, chosen) -> torch.Tensor:
    """Bool (h, w): where estimates with the two prompts of ``texts`` (2, tokens, width) differ."""
    place = max(1, int(task.steps * chosen["mask_strength"]))
    timestep = scheduler.timesteps[-place]
    random = pictures.generator(task)
    apart = 0
    for _ in range(chosen["maps"]):
        noise = torch.randn(clean.shape, generator=random, dtype=clean.dtype).to(clean.device)
        noised = scheduler.add_noise(clean, noise, timestep[None])
        old, new = pipe.unet(torch.cat([noised] * 2), timestep, encoder_hidden_states=texts).sample.float()
        apart = apart + (new - old).abs().mean(0)
    apart = apart / chosen["maps"]
    top = apart.mean() * chosen["outliers"]
    return apart.clamp(max=top) > top * chosen["threshold"]
