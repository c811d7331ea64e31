"""The pyramid of a mask: the edited positions at every resolution of a model, as a policy wants them."""

from sige import masks
from sige.buckets import filled
from sige.families import halvings, tile_side


class Pyramid:
    """A mask (B, H, W) at other resolutions.

    size: (H, W) of the model's input map, which the steps of ``dilation`` and ``block`` start from.
    finest: (H, W) of the finest map that the model makes.
    """

    def __init__(self, mask, policy, size, finest):
        self.mask, self.policy, self.size, self.finest = mask, policy, size, finest
        self._values = {}
        self._masks = {}
        self._nested = {}

    def _chain(self, height, width, start=None):
        """Sizes from ``start``, the mask's own, down to (height, width), halving; a lone jump where halving does not lead there."""
        start = start or tuple(self.mask.shape[1:])
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
            dilation = self.policy.at("dilation", halvings(self.size, height, width))
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

    def nested_mask(self, height, width):
        """Our active positions at a level: dilated, covering the finer level's, in whole tiles."""
        if (height, width) not in self._nested:
            wanted = self.mask_at(height, width)
            sizes = self._chain(height, width, self.finest)
            if len(sizes) > 1 and sizes[-2] != (height, width):
                wanted = wanted | masks.reduce_max(self.nested_mask(*sizes[-2]), height, width)
            tile = tile_side(self.policy, self.size, height, width)
            tiles = self.in_bucket(masks.reduce_max(wanted, height // tile, width // tile))
            self._nested[height, width] = masks.reduce_max(tiles, height, width)
        return self._nested[height, width]

    def in_bucket(self, tiles):
        """A bool grid of active tiles filled up to the policy's bucket, where it has buckets."""
        return tiles if self.policy.bucket is None else filled(tiles, self.policy.bucket)

    def nested_tiles(self, height, width):
        """(tile, grid): our active positions at a level as a bool grid (B, rows, columns) of squares."""
        tile = tile_side(self.policy, self.size, height, width)
        grid = masks.reduce_max(self.nested_mask(height, width), height // tile, width // tile)
        return (tile, tile), grid
