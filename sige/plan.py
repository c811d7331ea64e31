"""Plans: the active set of each level and convolution for one mask, and the row numbers that each convolution reads.

A plan is made once an edit, before the first step; every step of the sampler uses it again.
"""

import torch

from sige import apsc, block_costs, masks
from sige.active_set import ActiveSet
from sige.errors import PolicyError
from sige.families import halvings, set_kind, tile_side, token_kind
from sige.pyramid import Pyramid
from sige.tiling import input_tiles, window_tiles
from sige.windows import canonical_window, parents, tile_rows, window_rows


class FullPlan:
    """The plan of a recording: every set is full, one for each family and size as in a plan of an edit.

    Keeps the list of what was asked, for plans of edits to prepare.
    """

    def __init__(self, policy, batch, size, device):
        self.policy, self.batch, self.size, self.device = policy, batch, size, device
        self.requests = {}
        self._layers = {}
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

    def conv_set(self, window, weight=None):
        """Full set of a convolution's output. ``weight``: the shape of its weight, by which plans choose how to compute it."""
        self.requests[("conv", window)] = None
        if weight is not None:
            outputs, inputs = weight[:2]
            self._layers[window, inputs, outputs] = number = self._layers.get((window, inputs, outputs), 0) + 1
            self.requests[("layer", window, inputs, outputs, number)] = None
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
    device: where the model computes, if not where the mask is.

    The sets are found on the host: a mask that is there costs no wait for a GPU. Row numbers are worked out on the device.
    """

    def __init__(self, mask, policy, size=None, finest=None, device=None):
        self.policy = policy
        self.batch, self.height, self.width = mask.shape
        self.size = size or (self.height, self.width)
        self.device = mask.device if device is None else torch.device(device)
        self._pyramid = Pyramid(mask.cpu(), policy, self.size, finest or self.size)
        self._check_block()
        self._layers = {}
        self._searches = {}
        self._whole = {}
        self.shape = None  # once prepared: what plans share that run the same programs, see ``sige.replay``
        self.sets = {}  # by (height, width, kind)
        self.made = {}  # (what, geometry, set) -> row numbers, see :meth:`make`

    def prepare(self, requests):
        """Build now every set and index that a recorded forward asked for, so that no step pays for it."""
        self._layers = apsc.layers_of(requests)  # known before the first set is made
        for kind, *what in requests:
            if kind == "layer":
                continue
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
        self.shape = tuple((key, *made.extent()) for key, made in self.sets.items())

    def _check_block(self):
        if self.policy.block == "adaptive":
            return
        rows, columns = self.policy.block_at(0)
        named = rows if rows == columns else (rows, columns)
        height, width = self.size
        if rows > height or columns > width:
            raise PolicyError(f"policy block={named} does not fit a {height}x{width} map: choose a smaller one")

    def tile_side(self, height, width):
        """See :func:`tile_side`."""
        return tile_side(self.policy, self.size, height, width)

    def mask_at(self, height, width):
        """See :meth:`sige.pyramid.Pyramid.mask_at`."""
        return self._pyramid.mask_at(height, width)

    def block_at(self, height, width):
        """(rows, columns) of the blocks of a level (height, width)."""
        if self.policy.block == "adaptive":
            return self._search(height, width).shape
        return self.policy.block_at(halvings(self.size, height, width))

    def _search(self, height, width):
        """The :class:`sige.apsc.Search` that found a level's blocks; made once."""
        level = height, width
        if level not in self._searches:
            layers = self._layers.get(level)
            self._searches[level] = apsc.search(self.mask_at(*level), self.policy, self.device.type, layers)
        return self._searches[level]

    @property
    def blocks(self):
        """The shapes (rows, columns) that were searched for, by level (height, width); empty unless ``block`` is "adaptive"."""
        return {level: search.shape for level, search in self._searches.items()}

    def level_set(self, height, width):
        """The active set of a level (height, width)."""
        if self.policy.geometry == "level":
            return self._set(height, width, "level", self._pyramid.nested_tiles)
        return self.conv_set(canonical_window(height, width))

    def conv_set(self, window, weight=None):
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
        return self._set(height, width, kind, lambda *_: ((tile, tile), self._token_tiles(height, width, tile)))

    def find_set(self, height, width, kind):
        """The set of a family (``ActiveSet.kind``) at a resolution; None where none was made."""
        return self.sets.get((height, width, kind))

    def _set(self, height, width, kind, tiles_of):
        if (height, width, kind) not in self.sets:
            tile, tiles = tiles_of(height, width)
            self.sets[height, width, kind] = self._finish(tiles, tile, height, width, kind)
        return self.sets[height, width, kind]

    def _token_tiles(self, height, width, tile):
        return self._pyramid.in_bucket(masks.in_tiles(self.mask_at(height, width), tile))

    def _input_tiles(self, window):
        level = window.source_size
        return input_tiles(self.mask_at(*level), window, self.block_at(*level))

    def _window_tiles(self, window):
        block, _ = self.block_at(*window.size)
        return window_tiles(self.mask_at(*window.size), window, block, self.policy.overhang)

    def _finish(self, tiles, tile, height, width, kind):
        above = self.policy.dense_above
        # Tiles beyond the edges are for faithful counts of small edits; where every tile is active the map is convolved as a whole.
        whole = self.policy.overhang and bool(tiles.all())
        if whole or above is not None and tiles.float().mean().item() > above:
            return ActiveSet.everything(self.batch, height, width, self.device, kind)
        return ActiveSet.from_tiles(tiles, tile, height, width, self.policy.overhang, kind).on(self.device)

    def make(self, what, geometry, chosen):
        """Row numbers that an operator reads at ``chosen``, made once. what: "window" or "tiles" of a convolution's ``geometry``,
        "parents" by a factor, or "reads" of another operator's."""
        key = (what, geometry, chosen)
        if key not in self.made:
            make = {"window": window_rows, "tiles": tile_rows, "parents": parents, "reads": _reads}[what]
            self.made[key] = make(chosen, geometry)
        return self.made[key]

    def parents(self, chosen, scale):
        """See :func:`parents`; made once."""
        return self.make("parents", scale, chosen)

    def reads(self, chosen, window):
        """What a convolution reads at ``chosen``: (index, tile) for ``conv_tiles`` where that pays, else (index, None) for
        ``conv_rows``.

        Wide tiles read each input little more than once; small ones, or few, are faster one position at a time: which it is, measured
        times say, see :mod:`sige.block_costs`.
        """
        plain = window.stride == (1, 1) and window.dilation == (1, 1) and chosen.overhang is None
        if plain and chosen.tile and self._whole_tiles_pay(chosen, window):
            return self.tile_rows(chosen, window), chosen.tile
        return self.window_rows(chosen, window), None

    def _whole_tiles_pay(self, chosen, window):
        if self.policy.whole_tiles != "faster":
            return self.policy.whole_tiles == "always"
        if (window, chosen) not in self._whole:
            layers = self._layers.get(window.source_size, {}).get(window, apsc.USUAL)
            tiles = len(chosen.tile_index)
            self._whole[window, chosen] = block_costs.whole_tiles_pay(
                self.device.type, layers, chosen.tile, tiles, chosen.count
            )
        return self._whole[window, chosen]

    def reads_of(self, chosen, geometry):
        """What an operator other than a convolution reads at ``chosen``: ``geometry.reads(chosen)``, made once. None on a full set."""
        return None if chosen.full else self.make("reads", geometry, chosen)

    def tile_rows(self, chosen, window):
        """See :func:`sige.windows.tile_rows`; made once."""
        return self.make("tiles", window, chosen)

    def window_rows(self, chosen, window):
        """See :func:`sige.windows.window_rows`; made once."""
        return self.make("window", window, chosen)


def _reads(chosen, geometry):
    return geometry.reads(chosen)
