"""Sampling and SDEdit with a model without text: diffusers' DDPM and DDIM pipelines have no image, no strength and no callback.

The loop is that of ``DDPMPipeline``, from noise or from a noised picture, on pixels.
"""

import inspect

import torch


class Unconditional:
    """A DDPM or DDIM pipeline as one that knows ``image``, ``strength`` and ``callback_on_step_end``.

    Its pictures are its latents: (B, 3, H, W) in [-1, 1].
    """

    def __init__(self, pipe):
        self.unet, self.scheduler, self._pipe = pipe.unet, pipe.scheduler, pipe

    def __call__(self, batch_size, num_inference_steps, generator, callback_on_step_end, image=None, strength=0.8):
        """Sample. image: float (B, 3, H, W) in [0, 1], noised to ``strength`` in (0, 1] of the schedule (Meng et al., SDEdit)."""
        from diffusers.utils.torch_utils import randn_tensor

        scheduler, size = self.scheduler, self.unet.config.sample_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        device, dtype = self.unet.device, self.unet.dtype
        scheduler.set_timesteps(num_inference_steps)
        steps = scheduler.timesteps
        shape = (batch_size, self.unet.config.in_channels, *(size if image is None else image.shape[2:]))
        x = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if image is None:
            x = x * scheduler.init_noise_sigma
        else:
            steps, _ = self.get_timesteps(num_inference_steps, strength, device)
            x = scheduler.add_noise((2 * image - 1).to(device, dtype), x, steps[:1].expand(batch_size))
        options = self._step_options(generator)
        with torch.no_grad():
            for number, t in enumerate(self._pipe.progress_bar(steps)):
                output = self.unet(scheduler.scale_model_input(x, t), t).sample
                x = scheduler.step(output, t, x, **options, return_dict=False)[0]
                x = callback_on_step_end(self, number, t, {"latents": x}).get("latents", x)
        return (x / 2 + 0.5).clamp(0, 1)

    def get_timesteps(self, num_inference_steps, strength, device):
        """The last ``strength`` of the schedule, as diffusers' image pipelines count it: (time steps, their number)."""
        count = min(int(num_inference_steps * strength), num_inference_steps)
        first = max(num_inference_steps - count, 0) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:], count

    def _step_options(self, generator):
        takes = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in takes else {}
