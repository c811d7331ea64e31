"""Time of whole edits, all steps, mask search and autoencoder included, in rounds; and what became of the rest of the picture."""

from sige.analysis.image_errors import relative_l2
from sige.analysis.stats import bootstrap_median, bootstrap_ratio
from sige.runs.editing.task import ORIGINAL
from sige.runs.metrics import Reading

ORDER = 40
PLAIN = "sdtp"  # the plain pipeline on the new prompt: what an edit costs without any method


def collect(bench, rounds, warmup):
    """Rows of scope ``edit``: ``edit_seconds`` (without the making of the original), ``edit_seconds.<part>``,
    ``edit_seconds_per_step``, ``edit_seconds.original``, ``edit_speedup`` against the plain pipeline, ``edit_calls``;
    ``edit_change_outside`` and ``edit_change_inside``: relative L2 distance to the original there, where the method has a mask,
    ``edit_change`` of the whole picture; ``edit_mask_area`` in %.
    """
    order, totals, parts = list(bench.runners), {}, {}
    last = {}
    for turn in range(warmup + rounds):
        for method in order[turn % max(1, len(order)) :] + order[: turn % max(1, len(order))]:
            if method not in bench.runners:
                continue
            with bench.guard(method):
                last[method] = bench.run(method)
                if turn >= warmup:
                    seconds = dict(last[method].seconds)
                    parts.setdefault(method, []).append(seconds)
                    totals.setdefault(method, []).append(sum(t for part, t in seconds.items() if part != ORIGINAL))
            bench.tick()
    bench.samples["edit_seconds"] = {method: totals[method] for method in totals}
    for method in list(bench.runners):
        yield from _times(method, totals, parts[method], last[method], bench)
        yield from _changes(method, last[method])


def _times(method, totals, parts, result, bench):
    value, n = bootstrap_median(totals[method]), len(totals[method])
    both = "original and edit are made at once" if ORIGINAL not in result.seconds else ""
    yield Reading(method, "edit_seconds", value.value, "s", scope="edit", lo=value.lo, hi=value.hi, n=n, reason=both)
    yield Reading(method, "edit_seconds_per_step", value.value / bench.task.steps, "s", scope="edit", n=n)
    yield Reading(method, "edit_calls", len(result.calls), "count", scope="edit")
    for part in parts[0]:
        middle = sorted(seconds[part] for seconds in parts)[n // 2]
        yield Reading(method, f"edit_seconds.{part}", middle, "s", scope="edit", n=n)
    if PLAIN in totals and method != PLAIN:
        ratio = bootstrap_ratio(totals[PLAIN], totals[method])
        yield Reading(
            method, "edit_speedup", ratio.value, "x", scope="edit", lo=ratio.lo, hi=ratio.hi, n=n, baseline=PLAIN
        )


def _changes(method, result):
    yield Reading(method, "edit_change", relative_l2(result.image, result.original), "1", scope="edit")
    if result.mask is None or not result.mask.any():
        return
    yield Reading(method, "edit_mask_area", 100 * result.mask.float().mean().item(), "%", scope="edit")
    pixels = result.image.shape[-1] // result.mask.shape[-1]
    mask = result.mask.repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)
    for name, where in (("inside", mask), ("outside", ~mask)):
        if where.any():
            change = relative_l2(result.image[:, where], result.original[:, where])
            yield Reading(method, f"edit_change_{name}", change, "1", scope="edit")
