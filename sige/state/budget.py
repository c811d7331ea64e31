"""Sizes: what a memory budget may be, and what a step's maps take where they lie and in use."""

from sige.errors import BudgetError
from sige.state.stored import stored_from


def check_budget(budget):
    """A memory budget as {tier: bytes}. BudgetError for anything else than bytes above 0, or a mapping of tiers to such."""
    limits = {} if budget is None else budget
    if not isinstance(limits, dict):
        limits = {"first": budget}
    for name, size in limits.items():
        known = name in ("device", "host", "first")
        if not known or isinstance(size, bool) or not isinstance(size, (int, float)) or size <= 0:
            raise BudgetError(
                f"memory_budget={budget!r} must be a number of bytes above 0, or such numbers by tier: "
                "{'device': ..., 'host': ...}"
            )
    return dict(limits)


def map_bytes(memory):
    """Bytes of a step's maps where they lie."""
    maps = memory.stored.values() or [stored_from(memory.entries[key]) for key in memory.reads]
    return sum(one.nbytes for one in maps)


def working_bytes(memory):
    """Bytes of a step's maps in use."""
    maps = memory.stored.values() or [stored_from(memory.entries[key]) for key in memory.reads]
    return sum(one.working_bytes for one in maps)
