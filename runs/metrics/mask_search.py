"""How far the runs of an old and a new prompt lie apart after each step, and the mask that is cut from it; with and without attention
control."""

import numpy as np

from sige.runs.metrics import Reading

ORDER = 20
TILE = 24  # side to which maps are reduced for their rows


def collect(bench, mask_steps, tiles):
    """Rows of scope ``loop`` for methods with an option ``controlled``: ``latent_distance.<step>``, the relative L2 distance of
    the latents after each step; ``latent_difference.<step>`` for the steps in ``tiles``, the mean of the map of differences, and
    ``prompt_mask``, the share of the mask in %. The last two have the map itself in their reason, see :func:`as_text`.

    mask_steps: (t1, t2), the mask is found from the latents after these steps.
    """
    from sige.pipelines.mask_search import search

    task = bench.task
    common = {"seed": task.seed, "steps": task.steps, "weights": bench.weights or None}
    common |= {"guidance_scale": task.guidance_scale, "height": task.height, "width": task.width}
    for method, runner in list(bench.runners.items()):
        with bench.guard(method):
            controlled = runner.options["controlled"]
            pipe = bench.pipes["text"]
            whole = search(
                pipe, task.prompt, task.new_prompt, mask_steps=(1, task.steps), controls=(controlled,), **common
            )
            found = search(
                pipe, task.prompt, task.new_prompt, mask_steps=tuple(mask_steps), controls=(controlled,), **common
            )
            yield from _rows(method, whole[controlled], found[controlled], tiles)
        bench.tick()


def _rows(method, whole, found, tiles):
    for step, distance in enumerate(whole.distance, start=1):
        yield Reading(method, f"latent_distance.{step}", distance, "1", scope="loop")
    for step in tiles:
        if step <= len(whole.by_step):
            tile = whole.by_step[step - 1][0].float()
            mean = tile.mean().item() / 255
            yield Reading(
                method, f"latent_difference.{step}", mean, "1", scope="loop", reason=as_text(tile.numpy() / 255)
            )
    mask = found.mask[0].float()
    yield Reading(method, "prompt_mask", 100 * mask.mean().item(), "%", scope="loop", reason=as_text(mask.numpy()))


def as_text(values) -> str:
    """A map (h, w) of numbers from 0 to 1 as text: ``map 24x24: `` and one hexadecimal digit a cell, row by row."""
    height, width = values.shape
    rows, columns = (min(TILE, side) for side in values.shape)
    cells = [
        [part.mean() for part in np.array_split(band, columns, axis=1)] for band in np.array_split(values, rows, axis=0)
    ]
    digits = np.rint(np.array(cells) * 15).astype(int)
    return f"map {rows}x{columns}: " + "".join(f"{digit:x}" for digit in digits.flat)
