"""The mask of a changed prompt on a stock pipeline, with and without attention control: what a figure of the two needs.

    found = search(pipe, "a dog on a sofa", "a dog with a hat on a sofa", seed=0)
    found[False].mask, found[True].mask         # bool (1, h, w), without and with attention control
    found[True].by_step                          # how far the two runs lie apart after each step, uint8 maps

The pipeline's own ``__call__`` runs the first steps of the old prompt once, those of the new prompt once for each setting, and is
interrupted then. A session does the same search as part of ``edit(prompt=...)``; this is for looking at it.
"""

import contextlib
import dataclasses

import torch

from sige import prompt_masks
from sige.errors import MaskError
from sige.pipelines.attention_control import AttentionControl
from sige.pipelines.prompts import PromptChange, compare

_ALL = 1 << 30


@dataclasses.dataclass(frozen=True)
class MaskSearch:
    """What the first steps of two prompts show.

    mask: bool (B, h, w), of latents after steps t1 to t2.   difference: uint8 (B, h, w), the map it is cut from.
    by_step: uint8 (B, h, w) after each step from the first to t2, each on a scale of its own.
    distance: relative L2 distance of the new latents from the old ones, after each of these steps.
    change: from the old prompt to the new.   map_bytes: attention maps that were remembered for it.
    """

    mask: torch.Tensor
    difference: torch.Tensor
    by_step: list
    distance: list
    change: PromptChange
    map_bytes: int


def search(
    pipe,
    old,
    new,
    seed=0,
    steps=50,
    mask_steps=(1, 10),
    controls=(False, True),
    max_positions=None,
    weights=None,
    **options,
):
    """A :class:`MaskSearch` for each of ``controls``, {False: without attention control, True: with it}.

    pipe: a text-to-image pipeline.   old, new: prompts.   steps: of the whole schedule; the first ``mask_steps[1]`` are run.
    max_positions: finest layers that are controlled, None: all.   weights: {word: factor} of the new prompt; they count in both.
    options: passed to the pipeline (guidance_scale, height, width, negative_prompt).
    """
    change = compare(pipe.tokenizer, old, new, weights)
    if not 1 <= mask_steps[0] <= mask_steps[1] <= steps:
        raise MaskError(
            f"the mask's steps are {tuple(mask_steps)}: give (t1, t2) with 1 <= t1 <= t2 <= {steps}, all steps"
        )
    control = AttentionControl(pipe, calls=_ALL, max_positions=max_positions)

    def first_latents(prompt, block):
        generator = torch.Generator("cpu").manual_seed(seed)
        with block:
            return _first_latents(pipe, prompt, mask_steps[1], generator, num_inference_steps=steps, **options)

    before = first_latents(old, control.recording() if any(controls) else contextlib.nullcontext())
    found = {}
    for controlled in controls:
        block = control.injecting(change) if controlled else control.weighting(change.weights)
        after = first_latents(new, block)
        difference = prompt_masks.difference_map(*(x[mask_steps[0] - 1 :] for x in (after, before)))
        found[controlled] = MaskSearch(
            prompt_masks.mask_of_map(difference),
            difference,
            [prompt_masks.difference_map([x], [y]) for x, y in zip(after, before, strict=True)],
            [float((x - y).double().norm() / y.double().norm()) for x, y in zip(after, before, strict=True)],
            change,
            control.state_bytes() if controlled else 0,
        )
    control.close()
    return found


def _first_latents(pipe, prompt, count, generator, **options):
    """Latents after each of the pipeline's first ``count`` steps; the rest of the schedule is not run."""
    latents = []

    def after_step(pipe, step, timestep, tensors):
        latents.append(tensors["latents"].clone())
        if len(latents) == count:
            pipe._interrupt = True
        return {}

    pipe(
        prompt,
        generator=generator,
        output_type="latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
        **options,
    )
    return latents
