"""Edits in a row: how far a picture that was edited sparsely, each time on top of the last, drifts from one edited densely.

The dense run makes the same edits with the same prompts inside the same masks, nothing remembered from step to step but the latents
outside; that is the engine under its dense policy. Masks are brush strokes of one size at seeded places.
"""

import warnings

import torch

from sige.analysis.image_errors import psnr, relative_l2, relative_l2_in_mask
from sige.runs.metrics import Reading

ORDER = 30


def collect(bench, area, edits):
    """Rows of scope ``loop`` for each method and number k of edits from 1 on: ``drift.<k>`` and ``drift_in_mask.<k>``, relative L2
    distance of the latents from the dense run's, over the whole picture and over everything edited so far; ``drift_psnr.<k>`` of the
    pictures, dB; ``sequence_macs.<k>``, of the k-th edit, G; ``sequence_macs_ratio.<k>``, how many times fewer than a dense run;
    ``sequence_area.<k>``, of its mask, %; ``sequence_seconds.<k>``. A method that starts from the first picture each time fills all
    strokes by the last prompt: another picture, of which no drift is told.

    area: share of the picture under each stroke.   edits: how many, at most the prompts there are.
    """
    count = min(edits, len(bench.prompts) - 1)
    masks = strokes(bench, area, count)
    reference = list(_run(bench, {"policy": "dense"}, masks))
    union = torch.stack(masks).cumsum(0) > 0
    for method, runner in list(bench.runners.items()):
        with bench.guard(method):
            for k, (edited, seconds, mask) in enumerate(_run(bench, runner.options, masks), start=1):
                true = reference[k - 1][0]
                rows = {
                    "sequence_macs": (edited.macs / 1e9, "G"),
                    "sequence_macs_ratio": (edited.dense_macs / max(edited.macs, 1), "x"),
                    "sequence_area": (100 * mask.float().mean().item(), "%"),
                    "sequence_seconds": (seconds, "s"),
                }
                if runner.options["commit"]:
                    rows |= _drift(edited, true, union[k - 1])
                for metric, (value, unit) in rows.items():
                    yield Reading(method, f"{metric}.{k}", value, unit, scope="loop")
                bench.tick()


def _drift(edited, true, mask):
    rows = {
        "drift": (relative_l2(edited.latents, true.latents), "1"),
        "drift_in_mask": (relative_l2_in_mask(edited.latents, true.latents, mask), "1"),
    }
    decibel = psnr(edited.image, true.image, data_range=1.0)
    return rows | ({"drift_psnr": (decibel, "dB")} if decibel < float("inf") else {})


def strokes(bench, area, count) -> list[torch.Tensor]:
    """``count`` masks bool (h, w) at the latents' resolution, the same for every method."""
    from sige.datasets import shapes

    reduction = bench.job["model"]["reduction"]
    size = (bench.task.height // reduction, bench.task.width // reduction)
    generator = torch.Generator().manual_seed(bench.job["seed"])
    return [shapes.brush(area, *size, generator)[0] for _ in range(count)]


def _run(bench, options, masks):
    """Make the picture of the first prompt and edit it by each of the others: (Edited, seconds, mask) of each edit.

    options: ``policy``, ``dials``, ``refresh_every`` (commits after which everything is recorded anew), ``commit`` (False: every
    edit starts from the first picture again, under all strokes so far).
    """
    import sige
    from sige.runs.methods.session import merged_dials, resolved_policy

    policy = resolved_policy({**options, "dials": merged_dials(options, bench.job["model"])}, {})
    coder = "dense" if options["policy"] == "dense" else None
    task, commit = bench.task, options.get("commit", True)
    session = sige.Session(bench.pipes["text"], policy, vae_policy=coder, refresh_every=options.get("refresh_every"))
    so_far = torch.zeros_like(masks[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # prompts that share no word are told of in their own rows
            session.generate(
                bench.prompts[0],
                seed=task.seed,
                steps=task.steps,
                guidance_scale=task.guidance_scale,
                height=task.height,
                width=task.width,
            )
            for prompt, mask in zip(bench.prompts[1:], masks, strict=False):
                so_far = so_far | mask
                where = mask if commit else so_far
                edited = session.edit(prompt, mask=where)
                if commit:
                    session.commit()
                yield edited, edited.seconds["total"], where
    finally:
        session.close()
