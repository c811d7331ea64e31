"""Multiply-accumulates of one step: dense by a dispatcher-level count, sparse from the rules' own formulas."""

from sige.runs.metrics import Reading

ORDER = 10
ON_META = True  # needs shapes, no values


def collect(bench):
    """Rows ``macs`` and ``macs_by_kind.<kind>``; for a dense method also ``params`` and ``weight_bytes``, for a sparse
    one ``dense_macs``, ``macs_ratio``, ``active_fraction`` (of the output) and ``fallbacks``.

    MACs are those of convolutions, linears and attention products, in units of 1e9. Operators that were executed and
    have no formula are named in the row's reason.
    """
    count = bench.dense_count
    note = f"executed, no formula: {', '.join(sorted(set(count.unlisted)))}" if count.unlisted else ""
    for method, runner in bench.runners.items():
        if runner.dense:
            yield Reading(method, "macs", count.total / 1e9, "G", reason=note)
            yield from _by_kind(method, count.by_kind)
            yield Reading(method, "params", bench.zoo.parameters() / 1e6, "M")
            yield Reading(method, "weight_bytes", bench.zoo.weight_bytes(runner.dtype) / 2**20, "MiB")
            continue
        effect = bench.probes[method].effect
        yield Reading(method, "macs", effect.macs / 1e9, "G")
        yield from _by_kind(method, effect.sparse_macs_by_kind)
        yield Reading(method, "dense_macs", count.total / 1e9, "G", reason=note)
        if effect.macs:
            yield Reading(method, "macs_ratio", count.total / effect.macs, "x", baseline="dense")
        yield Reading(method, "active_fraction", effect.active.float().mean().item(), "fraction")
        yield Reading(
            method, "fallbacks", float(len(effect.fallbacks)), "count", reason=", ".join(sorted(set(effect.fallbacks)))
        )


def _by_kind(method, kinds):
    for kind, count in sorted(kinds.items()):
        yield Reading(method, f"macs_by_kind.{kind}", count / 1e9, "G")
