"""How many bytes of the stored state an edit reads, that is, how many travel to the device for each of its steps.

    ring    rows of maps, convolutions' inputs above all, that lie under an active window and are not computed themselves
    kv      keys and values (or the tokens that they are projected from), whole
    sums    sums of the normalisations' active tiles; recorded attention at active positions, where new is mixed with it
    exit    maps that the model leaves sparsity by, for a level that runs dense or an operator without a rule, whole

Works on the meta device too: the mask alone has values. Bytes are those of the stored dtype; a packed map's scale is not counted.
"""

from sige.state.needs import Needs
from sige.state.stored import stored_from

KINDS = ("ring", "kv", "sums", "exit")
_OF = {
    "kv": "kv",
    "kv_tokens": "kv",
    "norm_sums": "sums",
    "attention_output": "sums",
    "exit": "exit",
    "fallback": "exit",
}


def bytes_by_kind(steps, plan):
    """Bytes that an edit of ``steps`` (StepMemory each) under ``plan`` reads of their maps, over all steps: {kind: bytes}."""
    needs, total = Needs(plan), dict.fromkeys(KINDS, 0)
    for memory in steps:
        for key in memory.reads:
            one = memory.stored[key] if key in memory.stored else stored_from(memory.entries[key])
            rows = needs.rows(memory, key)
            count = one.data.shape[0] if rows is None else len(rows)
            total[_OF.get(one.kind, "ring")] += count * one.data.shape[1] * one.data.element_size()
    return total
