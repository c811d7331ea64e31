"""Bytes that a method remembers between steps, by kind."""

from sige.runs.metrics import Reading

ORDER = 30
ON_META = True  # needs shapes, no values
MIB = 1 << 20


def collect(bench):
    """Rows in MiB for each method that remembers anything: ``state_bytes.<kind>`` and ``state_bytes.total``; ``state_dtype.<dtype>``,
    the same bytes by the type that they are stored in; ``state_tiers.<tier>``, by where they lie, of a method with a memory budget."""
    for method, runner in bench.runners.items():
        kinds = runner.state_bytes()
        if not runner.dense:
            yield Reading(method, "state_bytes.total", sum(kinds.values()) / MIB, "MiB")
        for kind, size in sorted(kinds.items()):
            yield Reading(method, f"state_bytes.{kind}", size / MIB, "MiB")
        for place, size in runner.state_places().items():
            yield Reading(method, f"state_{place}", size / MIB, "MiB")
