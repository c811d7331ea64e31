"""Active sets: which positions of a map an edit touches, sorted by sample and tile."""

import torch


class ActiveSet:
    """Active positions of one resolution.

    batch, height, width: the map's size.   count: number of active positions n.
    index: (n,) int64 flat rows ``(b*H + y)*W + x``, distinct, sorted by sample; None on a full set (row i is position i).
    tile: (h, w) of the tiles the set is made of when its rows come tile after tile (whole tiles only), else None.
    tile_index: (T,) int64 flat tile numbers in the grid of H/h x W/w tiles of each sample, or None.
    segments: for each sample the (start, stop) of its rows.
    overhang: (m, 3) sample, row and column of positions outside the map that are computed all the same and thrown away.
    kind: the family of the set, the same in a recording and in every edit: ``level`` for a resolution's own set, ("inner", side) for
        one that is always part of it, else whatever tells it from others of its resolution.
    """

    def __init__(
        self,
        batch,
        height,
        width,
        index=None,
        tile=None,
        tile_index=None,
        segments=None,
        device="cpu",
        overhang=None,
        kind="level",
    ):
        self.batch, self.height, self.width, self.kind = batch, height, width, kind
        self.device = index.device if index is not None else torch.device(device)
        self.index, self.tile, self.tile_index = index, tile, tile_index
        self.full = index is None
        self.overhang = overhang
        area = height * width
        self.count = batch * area if self.full else index.numel()
        self.segments = [(b * area, (b + 1) * area) for b in range(batch)] if self.full else segments
        self._row_of = None
        self._sample = None
        self._others = None
        self._found = {}
        self._host = None  # of a set on the meta device: the same set with its data

    @classmethod
    def everything(cls, batch, height, width, device="cpu", kind="level"):
        """All positions, in row-major order."""
        return cls(batch, height, width, device=device, kind=kind)

    def on(self, device):
        """This set for maps on ``device``. On ``meta`` only the numbers of rows are left; questions of content go to this one."""
        if torch.device(device) == self.device:
            return self
        moved = [part if part is None else part.to(device) for part in (self.index, self.tile_index, self.overhang)]
        other = ActiveSet(
            self.batch,
            self.height,
            self.width,
            moved[0],
            self.tile,
            moved[1],
            self.segments,
            device,
            moved[2],
            self.kind,
        )
        other._host = self if other.device.type == "meta" else None
        return other

    @classmethod
    def from_tiles(cls, tiles, tile, height, width, overhang=False, kind="level"):
        """Set of tiles from a bool grid (B, rows, columns) that covers the map (B, H, W) or more. ``tile`` is (h, w).

        Positions outside the map are left out; with ``overhang`` they are listed as such.
        """
        batch, rows, columns = tiles.shape
        tile_index = tiles.flatten().nonzero().flatten()
        b = tile_index // (rows * columns)
        y0 = tile_index // columns % rows * tile[0]
        x0 = tile_index % columns * tile[1]
        down, across = (torch.arange(side, device=tiles.device) for side in tile)
        y = (y0[:, None] + down)[:, :, None]
        x = (x0[:, None] + across)[:, None, :]
        flat = (b[:, None, None] * height + y) * width + x
        inside = ((y < height) & (x < width)).expand_as(flat)
        ragged = bool(height % tile[0] or width % tile[1])
        outside = None
        if not bool(inside.all()):
            if overhang:
                where = torch.stack([place.expand_as(flat)[~inside] for place in (b[:, None, None], y, x)], 1)
                outside = where if len(where) else None
            tile_index = tile_index[inside[:, 0, 0]]
            flat = flat[inside]
        flat = flat.reshape(-1)
        per_sample = torch.bincount(flat // (height * width), minlength=batch).tolist() if flat.numel() else [0] * batch
        stops = torch.tensor(per_sample).cumsum(0).tolist()
        segments = [(stop - n, stop) for n, stop in zip(per_sample, stops)]
        if ragged:
            tile, tile_index = None, None
        else:
            tile_index = _regrid(tile_index, tiles.shape, height // tile[0], width // tile[1])
        return cls(batch, height, width, flat, tile, tile_index, segments, overhang=outside, kind=kind)

    def within(self, other):
        """Whether this set is part of ``other`` for every mask, by their families."""
        return other.kind == "level" and isinstance(self.kind, tuple) and self.kind[0] == "inner"

    def extent(self):
        """What of a set its operators' shapes depend on: whether it is full, its rows by sample, its tiles, its overhang."""
        return self.full, tuple(self.segments), self.tile, self.computed - self.count

    @property
    def computed(self):
        """Number of positions that a convolution with this set computes, overhang included."""
        return self.count + (0 if self.overhang is None else len(self.overhang))

    @property
    def content(self):
        """This set with its data: of one on the meta device the one that it was made from."""
        return self._host or self

    @property
    def shape(self):
        return self.batch, self.height, self.width

    @property
    def positions(self):
        """(n,) flat rows, also of a full set."""
        if self.index is None:
            self.index = torch.arange(self.count, device=self.device)
        return self.index

    def sample(self):
        """(n,) int64 sample number of each row, or None when there is one sample only."""
        if self.batch == 1:
            return None
        if self._sample is None:
            self._sample = self.positions // (self.height * self.width)
        return self._sample

    def row_of(self):
        """(B*H*W,) int64: the row that holds each position, -1 where it is not active."""
        if self._row_of is None:
            table = torch.full((self.batch * self.height * self.width,), -1, device=self.positions.device)
            table[self.positions] = torch.arange(self.count, device=table.device)
            self._row_of = table
        return self._row_of

    def rows_for(self, other):
        """Row numbers in this set of the positions of ``other``; -1 where missing. Returns (rows, complete)."""
        found = self._found.get(id(other))
        if found is None:
            if self._host is not None:
                rows, complete = self._host.rows_for(other._host or other)
                found = (rows.to("meta"), complete, other)
            else:
                rows = self.row_of()[other.positions]
                found = (rows, bool((rows >= 0).all()), other)  # keeping `other` alive keeps its id its own
            self._found[id(other)] = found
        return found[0], found[1]

    def others(self):
        """Flat rows of the positions that are not active, in order; (B*H*W - n,) int64."""
        if self._others is None:
            if self._host is not None:
                self._others = self._host.others().to("meta")
            else:
                self._others = (~self.mask()).flatten().nonzero().flatten()
        return self._others

    def mask(self):
        """Bool (B, H, W) map of the set."""
        if self._host is not None:
            return self._host.mask()
        if self.full:
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        flat = torch.zeros(self.batch * self.height * self.width, dtype=torch.bool, device=self.index.device)
        flat[self.index] = True
        return flat.view(self.batch, self.height, self.width)


def _regrid(tile_index, grid, rows, columns):
    """Flat tile numbers of a grid (B, more rows, more columns) as those of a grid of ``rows`` x ``columns``."""
    sample, row = tile_index // (grid[1] * grid[2]), tile_index // grid[2] % grid[1]
    return (sample * rows + row) * columns + tile_index % grid[2]
