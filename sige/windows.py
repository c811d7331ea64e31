"""Windows: the geometry of a convolution, and the input rows that each of its output positions or tiles reads."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Window:
    """Geometry of a convolution. ``size`` is the (H, W) of its input before padding, after up-sampling by ``scale``."""

    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # rows above, columns to the left
    dilation: tuple[int, int]
    scale: int = 1  # nearest up-sampling between the remembered map and this convolution

    @property
    def pointwise(self):
        """Whether output position i reads input position i alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.scale == 1

    @property
    def canonical(self):
        """Whether its active tiles are the level's own: a 3x3 convolution of stride 1."""
        return self.kernel == (3, 3) and self.stride == (1, 1) and self.padding == (1, 1) and self.dilation == (1, 1)

    @property
    def source_size(self):
        """(H, W) of the remembered map that it reads, before up-sampling."""
        return self.size[0] // self.scale, self.size[1] // self.scale


def canonical_window(height, width):
    """The 3x3 convolution that defines a level's active tiles under ``geometry="window"``."""
    return Window((height, width), (height, width), (3, 3), (1, 1), (1, 1), (1, 1))


def parents(chosen, scale):
    """(n,) int64: for each position of ``chosen`` the row of the position ``scale`` times coarser that nearest up-sampling copies."""
    sample, y, x = _places(chosen)
    return (sample * (chosen.height // scale) + y // scale) * (chosen.width // scale) + x // scale


def window_rows(chosen, window):
    """(n, kh*kw) int64: the input row that each tap of each position of ``chosen`` reads, -1 outside the map.

    The set's overhang, where it has one, comes after its own n positions.
    """
    places = _places(chosen)
    if chosen.overhang is not None:
        places = [torch.cat(pair) for pair in zip(places, chosen.overhang.unbind(1))]
    return rows_read(places, window)


def tile_rows(chosen, window):
    """(T, wh*ww) int64: the input rows of each tile's window under a stride-1 convolution, -1 outside the map.

    ``chosen`` is made of whole tiles of (h, w); wh = h + kh - 1, ww = w + kw - 1.
    """
    high, wide = chosen.tile
    columns = chosen.width // wide
    grid = columns * (chosen.height // high)
    tiles = chosen.tile_index
    corner = (tiles // grid, tiles // columns % (grid // columns) * high, tiles % columns * wide)
    extent = tuple(side + reach - 1 for side, reach in zip(chosen.tile, window.kernel))
    return rows_read(corner, dataclasses.replace(window, kernel=extent))


def rows_read(places, window):
    """(n, kh*kw) int64: the input row under each tap of a window at output places (sample, row, column), -1 outside."""
    sample, y, x = places
    taps = []
    for axis, place in ((0, y), (1, x)):
        offsets = torch.arange(window.kernel[axis], device=y.device) * window.dilation[axis] - window.padding[axis]
        taps.append(place[:, None] * window.stride[axis] + offsets)
    inside = ((taps[0] >= 0) & (taps[0] < window.size[0]))[:, :, None]
    inside = inside & ((taps[1] >= 0) & (taps[1] < window.size[1]))[:, None, :]
    height, width = window.source_size
    rows = (sample[:, None, None] * height + (taps[0] // window.scale)[:, :, None]) * width
    rows = rows + (taps[1] // window.scale)[:, None, :]
    return torch.where(inside, rows, -1).flatten(1)


def _places(chosen):
    """(sample, row, column) of each position of a set."""
    flat, area = chosen.positions, chosen.height * chosen.width
    return flat // area, flat // chosen.width % chosen.height, flat % chosen.width
