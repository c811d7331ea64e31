"""Which rows of a remembered map an edit reads: those under its convolutions' windows that it does not compute itself.

While recording, each reader of a map notes what it will read (``StepMemory.reads``), before there is a mask:

    ("conv", window)            a convolution: the input rows under its windows
    ("reads", geometry)         another operator of such a kind (``Plan.reads_of``): a transposed convolution
    ("parents", h, w, scale)    nearest up-sampling to the level (h, w)
    ("set", h, w, kind)         the positions of another active set
    ("tiles", h, w)             of a matrix with one row a tile: the active tiles of the level (h, w)
    ("all",)                    everything: attention, operators without a rule
"""

import torch

from sige.windows import parents, window_rows

NOTHING = torch.empty(0, dtype=torch.int64)


class Needs:
    """What the edit of one plan reads, map by map. On the meta device too: the plan's mask has values."""

    def __init__(self, plan):
        self.plan = plan
        self._found = {}

    def rows(self, memory, key):
        """Row numbers (n,) int64, sorted, on the CPU, that an edit reads of the map ``key`` and does not compute; None: all rows."""
        what = (tuple(memory.reads[key]), memory.writes.get(key))
        if what not in self._found:
            self._found[what] = self._rows(*what)
        return self._found[what]

    def _rows(self, reads, writes):
        own = self.plan.find_set(*writes) if writes else None
        if own is not None and own.full:
            return NOTHING  # computed whole
        parts = [self._read(*read) for read in reads]
        if any(part is None for part in parts):
            return None
        rows = torch.cat([NOTHING, *parts]).unique()
        rows = rows[rows >= 0]
        return rows if own is None else rows[own.content.row_of().cpu()[rows] < 0]

    def _read(self, kind, *what):
        """Rows that one reader reads, None for all of them."""
        found = getattr(self, f"_{kind}")(*what)
        return None if found is None else found.flatten().cpu()

    def _all(self):
        return None

    def _conv(self, window):
        chosen = self.plan.conv_set(window)
        if chosen.full:
            return None
        if chosen.content is chosen:
            return self.plan.reads(chosen, window)[0]
        return window_rows(chosen.content, window)

    def _reads(self, geometry):
        chosen = self.plan.level_set(*geometry.out_size)
        if chosen.full:
            return None
        return torch.cat([index.flatten() for _, index in geometry.reads(chosen.content)])

    def _parents(self, height, width, scale):
        level = self.plan.level_set(height, width)
        return None if level.full else parents(level.content, scale)

    def _set(self, height, width, kind):
        chosen = self.plan.find_set(height, width, kind)
        return None if chosen is None or chosen.full else chosen.content.positions

    def _tiles(self, height, width):
        level = self.plan.level_set(height, width)
        if level.full:
            return NOTHING  # summed anew
        content = level.content
        return content.positions if self.plan.tile_side(height, width) == 1 else content.tile_index
