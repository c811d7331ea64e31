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


def set_kind(policy, window):
    """Family of the active set with which a convolution's output is computed: see ``ActiveSet.kind``."""
    if policy.geometry == "level":
        return "level"
    if policy.geometry == "tile":
        return "level" if window.stride == (1, 1) and window.scale == 1 else ("tile", window.stride, window.scale)
    if window.canonical:
        return "level"
    return ("inner", policy.block) if window.pointwise else window


def token_kind(policy):
    """Family of the set that token sequences are kept at."""
    if policy.token_block is None:
        return "level"
    if policy.geometry == "level":
        return ("tokens", policy.token_block)
    blocks = policy.block if isinstance(policy.block, tuple) else (policy.block,)
    same = all(block % policy.token_block == 0 for block in blocks)
    return ("inner", policy.token_block) if same else ("tokens", policy.token_block)


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
    """The plan of a recording: every set is full, one for each family and size as in a plan of an edit.

    Keeps the list of what was asked, for plans of edits to prepare.
    """

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
        return self._everything(height, width, "level")

    def token_set(self, height, width):
        """Full set of the tokens of a level."""
        self.requests[("tokens", height, width)] = None
        return self._everything(height, width, token_kind(self.policy))

    def conv_set(self, window):
        """Full set of a convolution's output."""
        self.requests[("conv", window)] = None
        return self._everything(*window.out_size, set_kind(self.policy, window))

    def _everything(self, height, width, kind):
        if (height, width, kind) not in self._sets:
            made = ActiveSet.everything(self.batch, height, width, self.device, kind)
            self._sets[height, width, kind] = made
        return self._sets[height, width, kind]

    def parents(self, chosen, scale):
        """See :func:`parents`."""
        return parents(chosen, scale)

    def reads_of(self, chosen, geometry):
        """Nothing yet: a full set is computed whole. What the plan of an edit is asked for, it makes before the first step."""
        self.requests[("reads", geometry)] = None


class Plan:
    """The plan of an edit: ``mask`` bool (B, H, W) under ``policy``.

    size: (H, W) of the model's input map, which the steps of ``block`` and ``dilation`` start from; the mask's where not given.
    finest: (H, W) of the finest map that the model makes (a decoder's is finer than its input).
    device: where the model computes, if not where the mask is. A plan for the meta device is made where the mask is.
    """

    def __init__(self, mask, policy, size=None, finest=None, device=None):
        self.mask, self.policy = mask, policy
        self.batch, self.height, self.width = mask.shape
        self.size = size or (self.height, self.width)
        self.device = mask.device if device is None else torch.device(device)
        if self.device.type != "meta":
            self.mask = mask.to(self.device)
        self._finest = finest or self.size
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
            elif kind == "tokens":
                self.token_set(*what)
            elif kind == "reads":
                self.reads_of(self.level_set(*what[0].out_size), what[0])
            elif not self.policy.is_dense_level(*what[0].size):
                chosen = self.conv_set(*what)
                if not chosen.full and not what[0].pointwise:
                    self.reads(chosen, what[0])

    def _check_block(self):
        block = self.policy.at("block", 0)
        height, width = self.size
        if self.policy.geometry == "level" and (height % block or width % block):
            fits = [n for n in (1, 2, 4, 8, 16, 32) if not (height % n or width % n)]
            raise PolicyError(
                f"policy block={block} does not fit a {height}x{width} map: choose a divisor of both sides, "
                f"such as {', '.join(map(str, fits))}"
            )
        if block > min(height, width):
            raise PolicyError(f"policy block={block} does not fit a {height}x{width} map: choose a smaller one")

    def tile_side(self, height, width):
        """See :func:`tile_side`."""
        return tile_side(self.policy, self.size, height, width)

    def _halvings(self, height, width):
        return halvings(self.size, height, width)

    def _chain(self, height, width, start=None):
        """Sizes from ``start``, the mask's own, down to (height, width), halving; a lone jump where halving does not lead there."""
        start = start or (self.height, self.width)
        sizes = [start]
        while sizes[-1][0] > height or sizes[-1][1] > width:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes if sizes[-1] == (height, width) else [start, (height, width)]

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
            sizes = self._chain(height, width, self._finest)
            if len(sizes) > 1 and sizes[-2] != (height, width):
                wanted = wanted | masks.reduce_max(self._nested_mask(*sizes[-2]), height, width)
            tile = self.tile_side(height, width)
            tiles = masks.reduce_max(wanted, height // tile, width // tile)
            self._level_masks[height, width] = masks.reduce_max(tiles, height, width)
        return self._level_masks[height, width]

    def level_set(self, height, width):
        """The active set of a level (height, width)."""
        if self.policy.geometry == "level":
            return self._set(height, width, "level", self._nested_tiles)
        return self.conv_set(canonical_window(height, width))

    def _nested_tiles(self, height, width):
        tile = self.tile_side(height, width)
        return tile, masks.reduce_max(self._nested_mask(height, width), height // tile, width // tile)

    def conv_set(self, window):
        """The output positions that a convolution computes."""
        kind = set_kind(self.policy, window)
        if self.policy.geometry == "level":
            return self.level_set(*window.out_size)
        if self.policy.geometry == "tile":
            return self._set(*window.out_size, kind, lambda *_: self._input_tiles(window))
        if kind == "level":
            window = canonical_window(*window.out_size)
        return self._set(*window.out_size, kind, lambda *_: self._window_tiles(window))

    def token_set(self, height, width):
        """The active tokens of a level (height, width): whole tiles of ``token_block`` that hold an edited position."""
        kind, tile = token_kind(self.policy), self.policy.token_block
        if kind == "level":
            return self.level_set(height, width)
        return self._set(height, width, kind, lambda *_: (tile, masks.in_tiles(self.mask_at(height, width), tile)))

    def _set(self, height, width, kind, tiles_of):
        if (height, width, kind) not in self._sets:
            tile, tiles = tiles_of(height, width)
            self._sets[height, width, kind] = self._finish(tiles, tile, height, width, kind)
        return self._sets[height, width, kind]

    def _input_tiles(self, window):
        """FISEdit's rule: the tiles of the input (before up-sampling) that hold an edited position, as tiles of the output."""
        height, width = (side // window.scale for side in window.size)
        block = self.policy.at("block", self._halvings(height, width))
        tile = max(1, block * window.scale // window.stride[0])
        return tile, masks.in_tiles(self.mask_at(height, width), block)

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

    def _finish(self, tiles, tile, height, width, kind):
        above = self.policy.dense_above
        if above is not None and tiles.float().mean().item() > above:
            return ActiveSet.everything(self.batch, height, width, self.device, kind)
        return ActiveSet.from_tiles(tiles, tile, height, width, self.policy.overhang, kind).on(self.device)

    def parents(self, chosen, scale):
        """See :func:`parents`; made once."""
        key = ("parents", scale, id(chosen))
        if key not in self._windows:
            self._windows[key] = (parents(chosen, scale), chosen)
        return self._windows[key][0]

    def reads(self, chosen, window):
        """What a convolution reads at ``chosen``: (index, tile) for ``conv_tiles`` where that pays, else (index, 0) for ``conv_rows``.

        Wide tiles read each input little more than once; small ones, or few, are faster one position at a time.
        """
        plain = window.stride == (1, 1) and window.dilation == (1, 1) and chosen.overhang is None
        if plain and chosen.tile >= _WIDE_TILE and len(chosen.tile_index) >= _MANY_TILES:
            return self.tile_rows(chosen, window), chosen.tile
        return self.window_rows(chosen, window), 0

    def reads_of(self, chosen, geometry):
        """What an operator other than a convolution reads at ``chosen``: ``geometry.reads(chosen)``, made once. None on a full set."""
        key = (geometry, id(chosen))
        if key not in self._windows and not chosen.full:
            self._windows[key] = (geometry.reads(chosen), chosen)
        return None if chosen.full else self._windows[key][0]

    def tile_rows(self, chosen, window):
        """(T, wh*ww) int64: the input rows of each tile's window under a stride-1 convolution, -1 outside the map."""
        key = ("tiles", window, id(chosen))
        if key not in self._windows:
            extent = tuple(chosen.tile + side - 1 for side in window.kernel)
            columns = chosen.width // chosen.tile
            grid = columns * (chosen.height // chosen.tile)
            tiles = chosen.tile_index
            corner = (tiles // grid, tiles // columns % (grid // columns) * chosen.tile, tiles % columns * chosen.tile)
            self._windows[key] = (rows_read(corner, dataclasses.replace(window, kernel=extent)), chosen)
        return self._windows[key][0]

    def window_rows(self, chosen, window):
        """(n, kh*kw) int64: the input row that each tap of each position of ``chosen`` reads, -1 outside the map.

        The set's overhang, where it has one, comes after its own n positions.
        """
        key = (window, id(chosen))
        if key not in self._windows:
            self._windows[key] = (_window_rows(chosen, window), chosen)
        return self._windows[key][0]


def parents(chosen, scale):
    """(n,) int64: for each position of ``chosen`` the row of the position ``scale`` times coarser that nearest up-sampling copies."""
    places, area = chosen.positions, chosen.height * chosen.width
    sample, y, x = places // area, places // chosen.width % chosen.height, places % chosen.width
    return (sample * (chosen.height // scale) + y // scale) * (chosen.width // scale) + x // scale


def _window_rows(chosen, window):
    positions = chosen.positions
    area = chosen.height * chosen.width
    places = positions // area, positions // chosen.width % chosen.height, positions % chosen.width
    if chosen.overhang is not None:
        places = [torch.cat(pair) for pair in zip(places, chosen.overhang.unbind(1))]
    return rows_read(places, window)


def rows_read(places, window):
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
