"""APSC: the shape of the blocks of each level, searched anew for every mask.

FISEdit (AAAI 2024) cuts a map into blocks of h x w, h and w among 2, 4, 8, 16 and 32, and says to choose, once a mask, the shape
that minimises (h - kh + 1)(w - kw + 1) N, N being the number of blocks that hold an edited position and kh x kw the kernel. That
product is 0 for every mask where a side is 2 and the kernel 3x3. The two readings that make sense, what is gathered and what is
multiplied, stand beside it; what the engine minimises is measured time, see :mod:`sige.block_costs`.
"""

import math
from typing import NamedTuple

import numpy as np

from sige import block_costs, masks
from sige.kernels import backends
from sige.policies import Policy
from sige.tiling import output_tile
from sige.windows import canonical_window

SHAPES = Policy(geometry="tile", block="adaptive").block_shapes()  # smaller ones first, of one area the squarer
USUAL = {(320, 320): 1}  # a convolution of Stable Diffusion's finest level, where nothing is known of the layers


class Choice(NamedTuple):
    """The shape (rows, columns) that costs least, its cost, and the cost of every shape that was tried."""

    shape: tuple[int, int]
    cost: float
    costs: dict


class Search(NamedTuple):
    """What a level's blocks were chosen by, and the choice."""

    objective: object
    choice: Choice

    @property
    def shape(self):
        """(rows, columns) of the level's blocks."""
        return self.choice.shape


def printed_objective(shape, tiles, positions=None, kernel=(3, 3)):
    """The formula as the paper prints it: (h - kh + 1)(w - kw + 1) N."""
    return (shape[0] - kernel[0] + 1) * (shape[1] - kernel[1] + 1) * tiles


def gathered_area(shape, tiles, positions=None, kernel=(3, 3)):
    """Input positions that are gathered, halo included: (h + kh - 1)(w + kw - 1) N."""
    return (shape[0] + kernel[0] - 1) * (shape[1] + kernel[1] - 1) * tiles


def multiplications(shape, tiles, positions=None, kernel=(3, 3)):
    """Output positions that are computed: h w N. Multiply-accumulates are this times the weight's size."""
    return shape[0] * shape[1] * tiles


OBJECTIVES = {"printed": printed_objective, "gathered": gathered_area, "multiplications": multiplications}


class MeasuredTime:
    """Seconds that the convolutions of a level take, by a table of measured times.

    table: a :class:`~sige.block_costs.CostTable`.
    layers: {Window: {(input channels of a group, outputs): how many such convolutions}}, all reading maps of the level.
    whole: the policy's ``whole_tiles``: whether tiles are convolved whole where they can be.
    """

    def __init__(self, table, layers, whole="faster"):
        self.table, self.layers, self.whole = table, layers, whole

    def __call__(self, shape, tiles, positions):
        """Seconds for ``tiles`` blocks of ``shape`` that hold ``positions`` positions of the map (arrays or numbers)."""
        return sum(self._window(window, shape, tiles, positions) for window in self.layers)

    def _window(self, window, shape, tiles, positions):
        around = sum(
            times * self.table.seconds("around", None, inputs, inputs, positions)
            for (inputs, _), times in self.layers[window].items()
        )
        if window.pointwise:
            return around + self._summed("linear_rows", None, window, positions)
        rows, whole = self._ways(window, shape, tiles, positions)
        return around + np.minimum(rows, whole)

    def _ways(self, window, shape, tiles, positions):
        """Seconds one position at a time, and tile by tile; infinite for a way that cannot or shall not be taken."""
        enlarged = window.scale**2 / math.prod(window.stride)
        taps = math.prod(window.kernel) / 9
        rows = taps * self._summed("conv_rows", None, window, np.asarray(positions) * enlarged)
        tile = output_tile(window, shape)
        plain = window.stride == window.dilation == (1, 1) and self.table.knows(tile)
        if not plain or self.whole == "never" or any(side % step for side, step in zip(window.out_size, tile)):
            return rows, np.full_like(rows, np.inf)
        whole = taps * self._summed("conv_tiles", tile, window, np.asarray(tiles))
        return np.full_like(rows, np.inf) if self.whole == "always" else rows, whole

    def _summed(self, operator, tile, window, counts):
        sizes = self.layers[window].items()
        return sum(times * self.table.seconds(operator, tile, *size, counts) for size, times in sizes)


def tile_counts(mask, shape):
    """Blocks of ``shape`` in each mask (B, H, W) that hold a True position, and the map's positions in them: int64 (B,), (B,)."""
    grid = masks.in_tiles(mask, shape)
    tall, wide = (
        np.minimum(step, side - step * np.arange(count))
        for step, side, count in zip(shape, mask.shape[1:], grid.shape[1:])
    )
    held = grid.cpu().numpy()
    return held.sum((1, 2)), np.einsum("brc,r,c->b", held.astype(np.int64), tall, wide)


def fitting(shapes, height, width, dividing=False):
    """Those shapes that a map (height, width) has room for, or that it divides into; the first of all where there are none."""
    room = [shape for shape in shapes if shape[0] <= height and shape[1] <= width] or shapes[:1]
    whole = [shape for shape in room if not (height % shape[0] or width % shape[1])]
    return tuple(whole or room[:1]) if dividing else tuple(room)


def choose(mask, objective, shapes=SHAPES):
    """The :class:`Choice` for all masks (B, H, W) of a level together; of equal costs the smaller block, then the squarer one."""
    shapes = fitting(shapes, *mask.shape[1:])
    totals = {}
    for shape in shapes:
        tiles, positions = tile_counts(mask, shape)
        totals[shape] = float(objective(shape, tiles.sum(), positions.sum()))
    best = min(shapes, key=totals.__getitem__)
    return Choice(best, totals[best], totals)


def layers_of(requests):
    """The convolutions that a recording's requests name: {level (height, width) that they read: layers as of :class:`MeasuredTime`}."""
    levels = {}
    for kind, *what in requests:
        if kind == "layer":
            window, inputs, outputs, _ = what
            sizes = levels.setdefault(window.source_size, {}).setdefault(window, {})
            sizes[inputs, outputs] = sizes.get((inputs, outputs), 0) + 1
    return levels


def layers_of_model(model, policy, *arguments):
    """:func:`layers_of` a model under an adaptive ``policy``: by one recorded forward on ``arguments``, which may be meta tensors."""
    from sige.session import Session  # the engine's top, above this module

    session = Session(model, policy)
    with session.record():
        session.model(*arguments)
    (step,) = session._steps
    return layers_of(step.requests)


def search(mask, policy, device_type, layers=None):
    """Search the shape of a level's blocks: ``mask`` bool (B, H, W) at the level, by ``policy.block_objective``.

    layers: as of :class:`MeasuredTime`; where nothing is known of them, one convolution of 320 channels stands for all. Where tiles
    must be convolved whole, shapes into which the map does not divide are left out.
    """
    objective = OBJECTIVES.get(policy.block_objective)
    if objective is None:
        unknown = {canonical_window(*mask.shape[1:]): USUAL}
        single = policy.whole_tiles == "faster" and not backends.gathers(device_type)
        whole = "never" if single else policy.whole_tiles
        objective = MeasuredTime(block_costs.table(device_type), layers or unknown, whole)
    shapes = fitting(policy.block_shapes(), *mask.shape[1:], dividing=policy.whole_tiles == "always")
    return Search(objective, choose(mask, objective, shapes))
