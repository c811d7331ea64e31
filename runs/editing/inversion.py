"""DDIM run backwards: from a picture's latents to the noise that leads to them (Song et al., ICLR 2021)."""

import torch

from sige.runs.errors import UserError

_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def schedulers(pipe, steps: int):
    """(DDIM, DDIM backwards) of ``steps`` steps, with the noise schedule of the pipeline's scheduler.

    Their time steps are the same numbers in opposite order. UserError where the pipeline's scheduler has no such schedule.
    """
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    config = pipe.scheduler.config
    if "beta_schedule" not in config:
        raise UserError(
            f"{type(pipe.scheduler).__name__} has no schedule of betas: it cannot be run backwards by DDIM."
        )
    shared = {name: config[name] for name in _SCHEDULE if name in config}
    more = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    pair = DDIMScheduler(**shared, **more), DDIMInverseScheduler(**shared, **more)
    for scheduler in pair:
        scheduler.set_timesteps(steps, device=pipe.device)
    return pair


def run(pipe, latents, text, backwards, count=None, regularise=None) -> list[torch.Tensor]:
    """Latents at every noise level from the picture's own, first, to the noisiest, last: ``count`` + 1 of them.

    latents: (1, C, h, w) of the picture.   text: its encoding (1, tokens, width), without guidance: one row a U-Net call.
    backwards: from :func:`schedulers`.   count: of steps; None: all.   regularise: changes each prediction, see ``pix2pix_zero``.
    """
    found = [latents]
    for timestep in backwards.timesteps[:count]:
        prediction = pipe.unet(found[-1], timestep, encoder_hidden_states=text).sample
        if regularise is not None:
            prediction = regularise(prediction, timestep, found[-1])
        found.append(backwards.step(prediction, timestep, found[-1]).prev_sample)
    return found
