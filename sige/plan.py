"""Plans: the active set of each level and convolution for one mask, and the row numbers that each convolution reads.

A plan is made once an edit, before the first step; every step of the sampler uses it again.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from sige import masks
from sige.active_set import ActiveSet
from sige.errors import PolicyError


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


def canonical_window(height, width):
    """The 3x3 convolution that defines a level's active tiles under ``geometry="window"``."""
    return Window((height, width), (height, width), (3, 3), (1, 1), (1, 1), (1, 1))


def halvings(base, height, width):
    """How many times a level (height, width) is half of ``base`` (H, W), the resolution of the mask."""
    return round(math.log2(max(base[0] / height, base[1] / width)))


def tile_side(policy, base, height, width):
    """Side of the tiles over which a level's norm statistics are summed: the policy's block where it divides the level."""
    block = policy.at("block", halvings(base, height, width))
    if policy.geometry == "level":
        return math.gcd(block, height, width)
    return 1 if height % block or width % block else block


# Where convolving whole tiles beats one position at a time, measured on two Zen 5 cores (15 % at 380 tiles of 8x8).
_WIDE_TILE, _MANY_TILES = 8, 128


class FullPlan:
    """The plan of a recording: every set is full. Keeps the list of what was asked, for plans of edits to prepare."""

    def __init__(self, policy, batch, size, device):
        self.policy, self.batch, self.size, self.device = policy, batch, size, device
        self.requests = {}
        self._sets = {}

    def tile_side(self, height, width):
        """See :func:`tile_side`."""
        return tile_side(self.policy, self.size, height, width)

    def level_set(self, height, width):
        """Full set of a level."""
        self.requests[("level", height, width)] = None
        if (height, width) not in self._sets:
            self._sets[height, width] = ActiveSet.everything(self.batch, height, width, self.device)
        return self._sets[height, width]

    def conv_set(self, window):
        """Full set of a convolution's output."""
        self.requests[("conv", window)] = None
        return self.level_set(*window.out_size)


class Plan:
    """The plan of an edit: ``mask`` bool (B, H, W) at the input's resolution, under ``policy``."""

    def __init__(self, mask, policy):
        self.mask, self.policy = mask, policy
        self.batch, self.height, self.width = mask.shape
        self.size = (self.height, self.width)
        self._check_block()
        self._values = {}
        self._masks = {}
        self._level_masks = {}
        self._sets = {}
        self._windows = {}

    def prepare(self, requests):
        """Build now every set and index that a recorded forward asked for, so that no step pays for it."""
        for kind, *what in requests:
            if kind == "level":
                self.level_set(*what)
            elif not self.policy.is_dense_level(*what[0].size):
                chosen = self.conv_set(*what)
                if not chosen.full and not what[0].pointwise:
                    self.reads(chosen, what[0])

    def _check_block(self):
        block = self.policy.at("block", 0)
        if self.policy.geometry == "level" and (self.height % block or self.width % block):
            fits = [n for n in (1, 2, 4, 8, 16, 32) if not (self.height % n or self.width % n)]
            raise PolicyError(
                f"policy block={block} does not fit a {self.height}x{self.width} mask: choose a divisor of both sides, "
                f"such as {', '.join(map(str, fits))}"
            )
        if block > min(self.height, self.width):
            raise PolicyError(
                f"policy block={block} does not fit a {self.height}x{self.width} mask: choose a smaller one"
            )

    def tile_side(self, height, width):
        """See :func:`tile_side`."""
        return tile_side(self.policy, self.size, height, width)

    def _halvings(self, height, width):
        return halvings(self.size, height, width)

    def _chain(self, height, width):
        """Sizes from the mask's own down to (height, width), halving; a lone jump where halving does not lead there."""
        sizes = [(self.height, self.width)]
        while sizes[-1][0] > height or sizes[-1][1] > width:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes if sizes[-1] == (height, width) else [(self.height, self.width), (height, width)]

    def mask_at(self, height, width):
        """The edited positions at a resolution, dilated, before any tiling: bool (B, height, width)."""
        if (height, width) not in self._masks:
            found = self._bilinear(height, width) if self.policy.pyramid == "bilinear" else None
            if found is None:
                found = masks.reduce_max(self.mask, height, width)
            dilation = self.policy.at("dilation", self._halvings(height, width))
            # SIGE dilates by a plus; ours takes the square that a 3x3 convolution reaches.
            grow = masks.dilate_cross if self.policy.pyramid == "bilinear" else masks.dilate_box
            self._masks[height, width] = grow(found, dilation)
        return self._masks[height, width]

    def _bilinear(self, height, width):
        sizes = self._chain(height, width)
        values = self._values.setdefault(sizes[0], self.mask.float())
        for size in sizes[1:]:
            if size not in self._values:
                halved = masks.halve_bilinear(values)
                if tuple(halved.shape[1:]) != size:
                    return None
                self._values[size] = halved
            values = self._values[size]
        return masks.binarize(values, self.policy.threshold)

    def _nested_mask(self, height, width):
        """Our active positions at a level: dilated, covering the finer level's, in whole tiles."""
        if (height, width) not in self._level_masks:
            wanted = self.mask_at(height, width)
            sizes = self._chain(height, width)
            if len(sizes) > 1:
                wanted = wanted | masks.reduce_max(self._nested_mask(*sizes[-2]), height, width)
            tile = self.tile_side(height, width)
            tiles = masks.reduce_max(wanted, height // tile, width // tile)
            self._level_masks[height, width] = masks.reduce_max(tiles, height, width)
        return self._level_masks[height, width]

    def level_set(self, height, width):
        """The active set of a level (height, width)."""
        if self.policy.geometry == "window":
            return self.conv_set(canonical_window(height, width))
        if (height, width) not in self._sets:
            active = self._nested_mask(height, width)
            tile = self.tile_side(height, width)
            tiles = masks.reduce_max(active, height // tile, width // tile)
            self._sets[height, width] = self._finish(tiles, tile, height, width)
        return self._sets[height, width]

    def conv_set(self, window):
        """The output positions that a convolution computes."""
        if self.policy.geometry == "level":
            return self.level_set(*window.out_size)
        if window not in self._sets:
            tile, tiles = self._window_tiles(window)
            self._sets[window] = self._finish(tiles, tile, *window.out_size)
        return self._sets[window]

    def _window_tiles(self, window):
        """SIGE's rule: an output tile is active when its input window, halo included, meets the mask."""
        block = self.policy.at("block", self._halvings(*window.size))
        mask = self.mask_at(*window.size)[:, None].float()
        out, reach, pitch, pads = [], [], [], []
        for axis in range(2):
            stride = window.stride[axis]
            tile = (block - 1) // stride + 1
            extent = (tile - 1) * stride + window.dilation[axis] * (window.kernel[axis] - 1) + 1
            before = window.padding[axis]
            count = -(-window.out_size[axis] // tile)
            if self.policy.overhang:
                count = max(count, (window.size[axis] + before) // (tile * stride) + 1)
            after = max(0, (count - 1) * tile * stride + extent - before - window.size[axis])
            out.append((tile, count)), reach.append(extent), pitch.append(tile * stride), pads.append((before, after))
        padded = F.pad(mask, (*pads[1], *pads[0]))
        pooled = F.max_pool2d(padded, reach, pitch)[:, 0, : out[0][1], : out[1][1]] > 0
        if out[0][0] != out[1][0]:
            raise PolicyError(
                f"policy geometry='window' needs equal strides, not {window.stride}: use geometry='level'"
            )
        return out[0][0], pooled

    def _finish(self, tiles, tile, height, width):
        above = self.policy.dense_above
        if above is not None and tiles.float().mean().item() > above:
            return ActiveSet.everything(self.batch, height, width, tiles.device)
        return ActiveSet.from_tiles(tiles, tile, height, width, self.policy.overhang)

    def reads(self, chosen, window):
        """What a convolution reads at ``chosen``: (index, tile) for ``conv_tiles`` where that pays, else (index, 0) for ``conv_rows``.

        Wide tiles read each input little more than once; small ones, or few, are faster one position at a time.
        """
        plain = window.stride == (1, 1) and window.dilation == (1, 1) and chosen.overhang is None
        if plain and chosen.tile >= _WIDE_TILE and len(chosen.tile_index) >= _MANY_TILES:
            return self.tile_rows(chosen, window), chosen.tile
        return self.window_rows(chosen, window), 0

    def tile_rows(self, chosen, window):
        """(T, wh*ww) int64: the input rows of each tile's window under a stride-1 convolution, -1 outside the map."""
        key = ("tiles", window, id(chosen))
        if key not in self._windows:
            extent = tuple(chosen.tile + side - 1 for side in window.kernel)
            columns = chosen.width // chosen.tile
            grid = columns * (chosen.height // chosen.tile)
            tiles = chosen.tile_index
            corner = (tiles // grid, tiles // columns % (grid // columns) * chosen.tile, tiles % columns * chosen.tile)
            self._windows[key] = (_rows_read(corner, dataclasses.replace(window, kernel=extent)), chosen)
        return self._windows[key][0]

    def window_rows(self, chosen, window):
        """(n, kh*kw) int64: the input row that each tap of each position of ``chosen`` reads, -1 outside the map.

        The set's overhang, where it has one, comes after its own n positions.
        """
        key = (window, id(chosen))
        if key not in self._windows:
            self._windows[key] = (_window_rows(chosen, window), chosen)
        return self._windows[key][0]


def _window_rows(chosen, window):
    positions = chosen.positions
    area = chosen.height * chosen.width
    places = positions // area, positions // chosen.width % chosen.height, positions % chosen.width
    if chosen.overhang is not None:
        places = [torch.cat(pair) for pair in zip(places, chosen.overhang.unbind(1))]
    return _rows_read(places, window)


def _rows_read(places, window):
    """(n, kh*kw) int64: the input row under each tap of a window at output places (sample, row, column), -1 outside."""
    sample, y, x = places
    taps = []
    for axis, place in ((0, y), (1, x)):
        offsets = torch.arange(window.kernel[axis], device=y.device) * window.dilation[axis] - window.padding[axis]
        taps.append(place[:, None] * window.stride[axis] + offsets)
    inside = ((taps[0] >= 0) & (taps[0] < window.size[0]))[:, :, None]
    inside = inside & ((taps[1] >= 0) & (taps[1] < window.size[1]))[:, None, :]
    height, width = window.size[0] // window.scale, window.size[1] // window.scale
    rows = (sample[:, None, None] * height + (taps[0] // window.scale)[:, :, None]) * width
    rows = rows + (taps[1] // window.scale)[:, None, :]
    return torch.where(inside, rows, -1).flatten(1)
