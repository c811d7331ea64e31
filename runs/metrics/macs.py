"""Multiply-accumulates of one step: dense by a dispatcher-level count, sparse from the rules' own formulas."""

from sige.runs.metrics import Reading

ORDER = 10


def collect(bench):
    """Rows ``macs``, and for a sparse method ``dense_macs``, ``macs_ratio``, ``active_fraction`` and ``fallbacks``.

    MACs are those of convolutions, linears and attention products, in units of 1e9.
    """
    for method, runner in bench.runners.items():
        if runner.dense:
            yield Reading(method, "macs", bench.dense_macs / 1e9, "G", reason=bench.unlisted_note)
            continue
        effect = bench.probes[method].effect
        yield Reading(method, "macs", effect.macs / 1e9, "G")
        yield Reading(method, "dense_macs", bench.dense_macs / 1e9, "G", reason=bench.unlisted_note)
        if effect.macs:
            yield Reading(method, "macs_ratio", bench.dense_macs / effect.macs, "x", baseline="dense")
        yield Reading(method, "active_fraction", effect.active.float().mean().item(), "fraction")
        yield Reading(method, "fallbacks", float(len(effect.fallbacks)), "count", reason=", ".join(sorted(set(effect.fallbacks))))
