"""Multiply-accumulates of whole edits at full size: each method's pipeline is run with its U-Net on meta tensors."""

import dataclasses

from sige.runs.editing import counting, registry
from sige.runs.metrics import Reading

ORDER = 10
ON_META = True  # needs shapes, no values
PLAIN = "sdtp"  # the plain pipeline on the new prompt


def collect(bench, steps=None):
    """Rows of scope ``edit``: ``edit_macs`` and ``edit_calls`` of the U-Net over the edit, ``edit_macs.<part>`` and
    ``edit_calls.<part>`` of its parts, ``edit_macs_per_step`` over the sampler's steps, ``edit_macs_ratio``, how many times fewer
    that is than of the plain pipeline where it was counted before, and for the engine ``edit_macs_per_sparse_step``.

    steps: of the sampler; None: the model's own number. In-painting fills the edit's mask; a method that finds its own uses noise.
    """
    plain = None
    for method in list(bench.runners):
        with bench.guard(method):
            options = bench.options(method)
            editor = options["editor"]
            network = bench.job["model"]["networks"][registry.kind(editor)]
            changes = {"options": {key: value for key, value in options["options"].items() if key != "dials"}}
            if options["options"].get("dials"):
                changes["options"]["dials"] = options["options"]["dials"]
            task = dataclasses.replace(bench.task, steps=steps or bench.task.steps, **changes)
            count = counting.count(editor, task, network)
            yield from _rows(method, count)
            if editor == PLAIN:
                plain = method, count.macs_per_step
            elif plain is not None:
                ratio = plain[1] / count.macs_per_step
                yield Reading(method, "edit_macs_ratio", ratio, "x", scope="edit", baseline=plain[0])
        bench.tick()


def _rows(method, count):
    note = f"{count.steps} steps, each call counted on the executed pipeline"
    yield Reading(method, "edit_macs", count.macs_total / 1e9, "G", scope="edit", n=count.calls, reason=note)
    yield Reading(method, "edit_calls", count.calls, "count", scope="edit", reason=note)
    yield Reading(
        method, "edit_macs_per_step", count.macs_per_step / 1e9, "G", scope="edit", n=count.calls, reason=note
    )
    for part, (calls, macs) in count.parts.items():
        yield Reading(method, f"edit_macs.{part}", macs / 1e9, "G", scope="edit", n=calls)
        yield Reading(method, f"edit_calls.{part}", calls, "count", scope="edit")
    if count.macs_per_sparse_step is not None:
        yield Reading(
            method, "edit_macs_per_sparse_step", count.macs_per_sparse_step / 1e9, "G", scope="edit", reason=note
        )
