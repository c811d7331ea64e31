"""Bytes that a method remembers between steps, by kind."""

from sige.runs.metrics import Reading

ORDER = 30
ON_META = True  # needs shapes, no values
MIB = 1 << 20


def collect(bench):
    """Rows ``state_bytes.<kind>`` and ``state_bytes.total`` in MiB for each method that remembers anything."""
    for method, runner in bench.runners.items():
        kinds = runner.state_bytes()
        if not runner.dense:
            yield Reading(method, "state_bytes.total", sum(kinds.values()) / MIB, "MiB")
        for kind, size in sorted(kinds.items()):
            yield Reading(method, f"state_bytes.{kind}", size / MIB, "MiB")
