"""How much of the picture an edit covers: as drawn, with what its data set adds, and at each resolution of a policy."""

import inspect

from sige.runs.metrics import Reading

ORDER = 15
ON_META = True
_SMALLEST = 8  # shorter side of the coarsest mask that is told of


def collect(bench):
    """Rows ``edit_area_<part>`` and, for a method of the engine, ``mask_density.<height>``, all in %.

    Parts are the data set's own (its function ``areas``); where it names none, ``raw`` is what differs between the two
    pictures by more than the data set's ``eps``, before the mask was grown. A mask's density is the share of positions
    that the policy counts as edited at that resolution, before any tiling.
    """
    areas = _areas(bench)
    for method, runner in bench.runners.items():
        for part, share in areas.items():
            yield Reading(method, f"edit_area_{part}", 100 * share, "%", scope="edit")
        session = getattr(runner, "session", None)
        for height, share in _densities(bench.mask, session.policy) if session else ():
            yield Reading(method, f"mask_density.{height}", 100 * share, "%", scope="edit")


def _areas(bench) -> dict[str, float]:
    from sige import masks
    from sige.datasets import registry

    owner = registry.owner(bench.edit.name)
    if hasattr(owner, "areas"):
        return owner.areas(bench.edit, **bench.job["dataset"])
    default = inspect.signature(owner.load).parameters.get("eps")
    eps = bench.job["dataset"].get("eps", default.default if default else 0.0)
    return {"raw": masks.difference_mask(bench.edit.original, bench.edit.edited, eps).float().mean().item()}


def _densities(mask, policy):
    """(height, share) at the mask's resolution and its halves."""
    from sige.plan import Plan

    plan = Plan(mask[None], policy)
    height, width = mask.shape
    while min(height, width) >= _SMALLEST:
        yield height, plan.mask_at(height, width).float().mean().item()
        height, width = height // 2, width // 2
