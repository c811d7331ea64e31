"""PPAP: Plug-and-Play, the features of the original steer the new picture (Tumanyan et al., CVPR 2023).

1. DDIM backwards with the old prompt, over all steps.
2. Sampling of three rows a step: the original along its own way back, and the new picture without and with text. In the first steps
   the new picture's rows take over the original's output of one residual block in the decoder, and its queries and keys in the
   decoder's self-attention.

diffusers has none; this one of ours works on a stock pipeline's parts. It makes ``steps`` calls of one row and ``steps`` of three. The
authors run 999 steps backwards; ``inversion_steps`` sets that. The paper reports no cost, its GPUs' memory was too small.
"""

import contextlib

import torch

from sige.runs.editing import attention, inversion, pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask
from sige.runs.errors import UserError

KIND = "text"
OPTIONS = {
    "feature_steps": 0.8,  # share of the steps, from the first, in which residual features are taken over
    "attention_steps": 0.5,  # the same for queries and keys
    "feature_block": "up_blocks.1.resnets.1",  # the residual block
    "attention_blocks": "up_blocks",  # self-attention of layers whose path begins so, after the feature block
    "inversion_steps": None,  # a multiple of the steps; None: as many
    "source_prompt": None,  # what the original's rows are told; None: the old prompt
}


@torch.no_grad()
def edit(pipe, task: EditTask) -> EditResult:
    """The edit by the original's features: the original's structure, the new prompt's looks."""
    pictures.check(pipe, KIND, "plug_and_play")
    chosen = pictures.settings(task, OPTIONS, "plug_and_play")
    source_prompt = task.prompt if chosen["source_prompt"] is None else chosen["source_prompt"]
    forwards, _ = inversion.schedulers(pipe, task.steps)
    stride = _stride(task, chosen)
    _, backwards = inversion.schedulers(pipe, task.steps * stride)
    injection = _Injection(pipe.unet, chosen, task.steps)
    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
        source, empty, new = pictures.texts(pipe, source_prompt, "", task.new_prompt).split(1)
        with meter.part("invert"):
            levels = inversion.run(pipe, pictures.encoded(pipe, before), source, backwards)
        # With more steps backwards, a forward step's noise level is the nearest of theirs.
        places = [int((backwards.timesteps - timestep).abs().argmin()) + 1 for timestep in forwards.timesteps]
        with meter.part("edit"), injection.at(pipe.unet):
            latents = levels[places[0]]
            for place, timestep in zip(places, forwards.timesteps, strict=True):
                rows = torch.cat([levels[place], latents, latents])
                predictions = pipe.unet(rows, timestep, encoder_hidden_states=torch.cat([source, empty, new])).sample
                prediction = pictures.guided(predictions[1:], task.guidance_scale)
                latents = forwards.step(prediction, timestep, latents).prev_sample
            after = pictures.decoded(pipe, latents)
    return pictures.result(meter, before, after, latents=latents)


def _stride(task, chosen) -> int:
    steps = chosen["inversion_steps"] or task.steps
    if steps % task.steps:
        raise UserError(f"plug_and_play has inversion_steps={steps}; give a multiple of the {task.steps} steps.")
    return steps // task.steps


class _Injection:
    """What the rows of the new picture take over from the original's, the first of three, in the call in hand."""

    def __init__(self, unet, chosen, steps):
        shares = {
            name: attention.check_share(chosen[name], name, "plug_and_play")
            for name in ("feature_steps", "attention_steps")
        }
        self.feature_calls = shares["feature_steps"] * steps
        self.attention_calls = shares["attention_steps"] * steps
        self.block, self.prefix = chosen["feature_block"], chosen["attention_blocks"]
        modules = dict(unet.named_modules())
        if not hasattr(modules.get(self.block), "conv2"):
            known = ", ".join(name for name, module in modules.items() if hasattr(module, "conv2"))
            raise UserError(f"plug_and_play finds no residual block {self.block!r}; there are {known}.")
        self.convolution = modules[self.block].conv2
        self.call = 0

    @contextlib.contextmanager
    def at(self, unet):
        """In force while the block runs."""
        hook = self.convolution.register_forward_hook(self._features)
        try:
            with attention.installed(unet, self._processor), attention.counted_calls(unet, self._begin):
                yield
        finally:
            hook.remove()

    def signature(self):
        """What the next call's cost depends on, for counting."""
        return self.call < self.feature_calls

    def _begin(self, call):
        self.call = call

    def _features(self, module, args, output):
        return _repeated(output) if self.call < self.feature_calls else None

    def _processor(self, name, layer):
        # In order of execution: an upper block's first attention comes before its second residual block.
        later = name.startswith(self.prefix) and _order(name) > _order(self.block)
        return _SharedQueries(self) if later and attention.is_self_attention(name) else None


def _order(path):
    """(block, place within it, residual before attention) of a decoder's part; parts outside the decoder come first."""
    parts = path.split(".")
    if parts[0] != "up_blocks":
        return (-1, 0, 0)
    return int(parts[1]), int(parts[3]), parts[2] == "attentions"


class _SharedQueries(attention.Processor):
    """Queries and keys of the original's row in all rows."""

    def __init__(self, injection):
        self.injection = injection

    def projected(self, query, key):
        if self.injection.call < self.injection.attention_calls:
            return _repeated(query), _repeated(key)
        return query, key

    def signature(self):
        return self.injection.call < self.injection.attention_calls


def _repeated(rows):
    """The first third of the rows, three times."""
    first = rows[: len(rows) // 3]
    return torch.cat([first] * 3)
