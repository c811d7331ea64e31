"""FISEdit through the engine: the edit runs on the recording of the original's own run (Yu et al., AAAI 2024).

The first steps of the new prompt run dense and show where the picture changes; from there on only that region is computed. With a
mask in the task the same steps run dense, as in the method that the mask came from, unless ``dense_first`` says otherwise.
"""

import torch

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import ORIGINAL, EditResult, EditTask
from sige.runs.methods.session import resolved_policy

KIND = "text"
OPTIONS = {
    "policy": "fisedit",  # of the U-Net
    "dials": {},  # what is changed of it
    "vae_policy": None,  # of the autoencoder; None: the session's own choice
    "dense_first": None,  # steps that run dense before the first sparse one; None: a fifth of them, 10 of 50 as published
    "dense_last": 0,  # steps that run dense at the end
    "attention_control": True,  # while the mask is found, unchanged words keep their attention
}


@torch.no_grad()
def edit(pipe, task: EditTask) -> EditResult:
    """One recorded run (the part ``original``) and one edit of it: parts ``dense``, ``sparse`` and ``last``.

    The original is what the recorded run makes; task.image must not be another picture, and is not looked at.
    ``details`` of the result is the session's own account, with the MACs of every step.
    """
    import sige

    pictures.check(pipe, KIND, "fisedit")
    chosen = pictures.settings(task, OPTIONS, "fisedit")
    first = max(1, task.steps // 5) if chosen["dense_first"] is None else chosen["dense_first"]
    control = first if chosen["attention_control"] and first else False
    policy = resolved_policy(chosen, {})
    session = sige.Session(pipe, policy, vae_policy=chosen["vae_policy"])
    try:
        with Meter(pipe) as meter:
            with meter.part(ORIGINAL):
                session.generate(
                    task.prompt,
                    seed=task.seed,
                    steps=task.steps,
                    guidance_scale=task.guidance_scale,
                    attention_control=control,
                    **pictures.size(task),
                )
            before = session.original.image[0]
            with meter.part("edit"):
                edited = session.edit(
                    task.new_prompt,
                    mask=task.mask,
                    dense_first=first,
                    dense_last=chosen["dense_last"],
                    mask_steps=(1, first) if task.mask is None else None,
                    attention_control=bool(control),
                )
    finally:
        session.close()
    made = pictures.result(meter, before, edited.image[0], edited.mask[0].cpu(), edited.latents)
    made.details = edited
    _split(made, [kind for _, kind, *_ in edited.steps])
    return made


def _split(result, kinds):
    """The edit's calls in parts: the first dense ones, the sparse ones, the last dense ones. ``kinds`` of its calls in order."""
    calls = result.calls_by_part.pop("edit")
    sparse = kinds.count("sparse")
    first = kinds.index("sparse") if sparse else len(kinds)
    result.calls_by_part["dense"] = calls[:first]
    result.calls_by_part["sparse"] = calls[first : first + sparse]
    result.calls_by_part["last"] = calls[first + sparse :]
