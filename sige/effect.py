"""What an edit did: the report that ``session.edit`` hands out."""

import dataclasses

from sige.active_set import ActiveSet


@dataclasses.dataclass
class Effect:
    """Filled while the edit runs.

    steps: forwards run.   macs, dense_macs: multiply-accumulates of convolutions, linear layers and attention products, over all
    steps, as executed and as the whole model would have needed; normalisation and pointwise operators are not counted.
    sparse_macs_by_kind: ``macs`` by kind (conv, linear, attention).
    active: bool (B, H, W) at the output's resolution, what was recomputed in the last step; None before the first.
    fallbacks: operators that ran dense for want of a rule, with the module that called them; one line that says so where the whole
    model did.
    """

    steps: int = 0
    macs: int = 0
    dense_macs: int = 0
    sparse_macs_by_kind: dict = dataclasses.field(default_factory=lambda: {"conv": 0, "linear": 0, "attention": 0})
    fallbacks: list = dataclasses.field(default_factory=list)

    _active = None

    def add(self, macs, dense_macs, active, fallbacks):
        """Account for one more step. ``active``: an ActiveSet or a bool map."""
        self.steps += 1
        self.macs += sum(macs.values())
        self.dense_macs += sum(dense_macs.values())
        for kind, count in macs.items():
            self.sparse_macs_by_kind[kind] += count
        self._active = active if isinstance(active, ActiveSet) else active.clone()
        self.fallbacks += [name for name in fallbacks if name not in self.fallbacks]

    @property
    def active(self):
        if isinstance(self._active, ActiveSet):
            self._active = self._active.mask()
        return self._active
