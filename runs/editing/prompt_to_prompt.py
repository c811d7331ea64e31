"""Prompt-to-Prompt: old and new prompt run side by side, and words that stay keep their attention (Hertz et al., ICLR 2023).

In the first steps the new picture's cross-attention maps are made of the old one's for unchanged words (refine), exchanged words take
over the maps of those they stand for (replace), and words may be given weights (re-weight). Its self-attention is the old one's
on coarse levels, which keeps the layout. Done through attention processors on the stock pipeline, whose scheduler stays.

Each step is one U-Net call of a batch of four, two prompts with and without text: twice that of the plain pipeline. The paper prints
it in the row of the plain pipeline, at 1.0x.
"""

import torch

from sige.runs.editing import attention, pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "text"
OPTIONS = {
    "cross_steps": 0.8,  # share of the steps, from the first, in which maps to the text are taken over
    "self_steps": 0.4,  # the same for maps of the picture to itself
    "self_reduction": 4,  # these are taken over on levels at 1/4 of the latents' resolution and coarser
    "weights": None,  # {word of the new prompt: factor}
}


@torch.no_grad()
def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock pipeline on both prompts; the original is that run's own first picture."""
    from sige.pipelines import prompts

    pictures.check(pipe, KIND, "prompt_to_prompt")
    chosen = pictures.settings(task, OPTIONS, "prompt_to_prompt")
    change = prompts.compare(pipe.tokenizer, task.prompt, task.new_prompt, chosen["weights"])
    control = _Control(change, chosen, task, pipe.vae_scale_factor)
    # A generator each: both start from the same noise, and schedulers that add noise add the same to both.
    sampling = {**pictures.sampling(task), "generator": [pictures.generator(task) for _ in range(2)]}
    with Meter(pipe) as meter, meter.part("edit"):
        with attention.installed(pipe.unet, control.processor), attention.counted_calls(pipe.unet, control.begin):
            before, after = pipe([task.prompt, task.new_prompt], **pictures.size(task), **sampling).images
    return pictures.result(meter, before, after)


class _Control:
    """Which maps are taken over in the call in hand."""

    def __init__(self, change, chosen, task, reduction):
        from sige.pipelines.attention_maps import Carry

        self.carry = Carry(change, swapped=True)
        self.weights = None if change.weights is None else torch.tensor(change.weights)
        shares = (
            attention.check_share(chosen[name], name, "prompt_to_prompt") for name in ("cross_steps", "self_steps")
        )
        self.cross_calls, self.self_calls = (share * task.steps for share in shares)
        side = reduction * chosen["self_reduction"]
        self.self_positions = (task.height // side) * (task.width // side)
        self.call = 0

    def begin(self, call):
        self.call = call

    def processor(self, name, layer):
        return _Self(self) if attention.is_self_attention(name) else _Cross(self)


class _Cross(attention.Processor):
    """Maps to the text: those of the new prompt's row made of the old one's. The last two rows of a batch are these."""

    def __init__(self, control):
        self.control = control

    def needs_map(self, query):
        return self.control.call < self.control.cross_calls

    def changed(self, shares):
        new = self.control.carry(shares[-1], shares[-2])
        if self.control.weights is not None:
            new = new * self.control.weights.to(new)
        return torch.cat([shares[:-1], new[None]])

    def signature(self):
        return self.control.call < self.control.cross_calls


class _Self(attention.Processor):
    """Maps of the picture to itself: those of the old prompt's row in place of the new one's."""

    def __init__(self, control):
        self.control = control

    def needs_map(self, query):
        return self.control.call < self.control.self_calls and query.shape[2] <= self.control.self_positions

    def changed(self, shares):
        return torch.cat([shares[:-1], shares[-2:-1]])

    def signature(self):
        return self.control.call < self.control.self_calls
