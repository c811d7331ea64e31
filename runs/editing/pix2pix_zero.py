"""pix2pix-zero: the new picture's cross-attention is pulled towards the original's by gradients (Parmar et al., SIGGRAPH 2023).

1. DDIM backwards with the old prompt; each prediction is pushed towards white noise (its correlation with itself shifted, and its
   distance from a normal distribution) without further U-Net calls.
2. Sampling again with the old prompt and guidance: the maps of every cross-attention layer are remembered for each step.
3. Sampling with the edited text: in each step a call whose maps are compared with the remembered ones, the gradient of that
   loss with respect to the latents, one step of descent, and a second call on the latents found so.

diffusers keeps its own class only as a deprecated one, so this is a compact one of ours on a stock pipeline's parts. Per step it makes
a call of one row and three of two, one of these with a backward pass. The paper reports no cost, its GPUs' memory was too small.
"""

import torch

from sige.runs.editing import attention, inversion, pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask
from sige.runs.errors import UserError

KIND = "text"
OPTIONS = {
    "guidance_amount": 0.1,  # the step of descent
    "source_sentences": None,  # lists of sentences about the old and the new thing: their encodings' means give the direction of
    "target_sentences": None,  # the edit; None: from the old prompt to the new one
    "regularisation_steps": 5,  # of the inversion, a prediction
    "correlation_weight": 20.0,
    "normality_weight": 20.0,
}


@torch.no_grad()
def edit(pipe, task: EditTask) -> EditResult:
    """The edit under guidance by cross-attention."""
    pictures.check(pipe, KIND, "pix2pix_zero")
    chosen = pictures.settings(task, OPTIONS, "pix2pix_zero")
    forwards, backwards = inversion.schedulers(pipe, task.steps)
    whiten = _Whiten(backwards, chosen, pictures.generator(task))
    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
        old, empty = pictures.texts(pipe, task.prompt, "").split(1)
        new = old + _direction(pipe, task, chosen)
        with meter.part("invert"):
            start = inversion.run(pipe, pictures.encoded(pipe, before), old, backwards, regularise=whiten)[-1]
        maps = _Maps()
        with attention.installed(pipe.unet, maps.processor):
            with meter.part("reference"):
                references = _reference(pipe, task, start, torch.cat([empty, old]), forwards, maps)
            with meter.part("edit"):
                text = torch.cat([empty, new])
                latents = start
                for timestep, reference in zip(forwards.timesteps, references, strict=True):
                    rows = _descended(pipe, latents, timestep, text, maps, reference, chosen["guidance_amount"])
                    both = pipe.unet(rows, timestep, encoder_hidden_states=text).sample
                    maps.take()
                    prediction = pictures.guided(both, task.guidance_scale)
                    latents = forwards.step(prediction, timestep, rows[:1]).prev_sample
                after = pictures.decoded(pipe, latents)
    return pictures.result(meter, before, after, latents=latents)


def _direction(pipe, task, chosen):
    """What is added to the old prompt's encoding, (1, tokens, width)."""
    old, new = (chosen[name] for name in ("source_sentences", "target_sentences"))
    if (old is None) != (new is None):
        raise UserError("pix2pix_zero has one of source_sentences and target_sentences; give both lists or neither.")
    old, new = ([task.prompt], [task.new_prompt]) if old is None else (old, new)
    return pictures.texts(pipe, *new).mean(0, keepdim=True) - pictures.texts(pipe, *old).mean(0, keepdim=True)


def _reference(pipe, task, latents, text, scheduler, maps):
    """The maps of each step of sampling with the old prompt."""
    found = []
    for timestep in scheduler.timesteps:
        both = pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=text).sample
        found.append(maps.take())
        latents = scheduler.step(pictures.guided(both, task.guidance_scale), timestep, latents).prev_sample
    return found


def _descended(pipe, latents, timestep, text, maps, reference, amount):
    """Latents (2, C, h, w) of both branches, one step of descent nearer to the remembered maps."""
    with torch.enable_grad():
        rows = torch.cat([latents] * 2).requires_grad_()
        pipe.unet(rows, timestep, encoder_hidden_states=text)
        loss = sum(attention.scores_apart(mine, its) for mine, its in zip(maps.take(), reference, strict=True))
        (gradient,) = torch.autograd.grad(loss, rows)
    return rows.detach() - amount * gradient


class _Maps:
    """The cross-attention maps of one U-Net call."""

    def __init__(self):
        self._found = []

    def take(self):
        """The maps since the last time, in order of the layers."""
        found, self._found = self._found, []
        return found

    def processor(self, name, layer):
        return None if attention.is_self_attention(name) else _Remembering(self._keep)

    def _keep(self, shares):
        self._found.append(shares)


class _Remembering(attention.Processor):
    """Hands out its map."""

    def __init__(self, keep):
        self.keep = keep

    def needs_map(self, query):
        return True

    def changed(self, shares):
        self.keep(shares)
        return shares

    def signature(self):
        return None


class _Whiten:
    """Pushes predictions towards white noise, by gradients of two losses on the noise that they stand for."""

    def __init__(self, scheduler, chosen, random):
        self.scheduler, self.chosen, self.random = scheduler, chosen, random

    def __call__(self, prediction, timestep, latents):
        noise_of = self._noise(timestep, latents)
        for _ in range(self.chosen["regularisation_steps"]):
            for weight, loss in (
                ("correlation_weight", self._correlation),
                ("normality_weight", _distance_from_normal),
            ):
                if self.chosen[weight]:
                    with torch.enable_grad():
                        free = prediction.detach().requires_grad_()
                        (gradient,) = torch.autograd.grad(loss(noise_of(free)), free)
                    prediction = prediction - self.chosen[weight] * gradient
        return prediction

    def _noise(self, timestep, latents):
        """The noise that a prediction stands for: itself, or made of it and the latents where velocity is predicted."""
        if self.scheduler.config.prediction_type == "epsilon":
            return lambda prediction: prediction
        kept = self.scheduler.alphas_cumprod[timestep].to(latents)
        if self.scheduler.config.prediction_type == "v_prediction":
            return lambda prediction: kept.sqrt() * prediction + (1 - kept).sqrt() * latents
        return lambda prediction: (latents - kept.sqrt() * prediction) / (1 - kept).sqrt()

    def _correlation(self, noise):
        """Correlation with itself, shifted by random distances along both sides, at every size down to 8."""
        total = 0
        for channel in noise.split(1, 1):
            while True:
                shift = int(torch.randint(1, channel.shape[2] // 2, (1,), generator=self.random))
                for side in (2, 3):
                    total = total + (channel * channel.roll(shift, side)).mean() ** 2
                if channel.shape[2] <= 8:
                    break
                channel = torch.nn.functional.avg_pool2d(channel, 2)
        return total


def _distance_from_normal(noise):
    """Kullback-Leibler divergence from the standard normal distribution, by mean and variance."""
    variance = noise.var()
    return variance + noise.mean() ** 2 - 1 - torch.log(variance + 1e-7)
