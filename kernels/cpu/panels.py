"""Weights as the compiled kernels read them: in panels of outputs, made once for each state of a weight."""

import torch
import torch.nn.functional as F

from sige.kernels.cpu.library import library
from sige.kernels.kept import Kept

_TILE = 32  # channels of a tile of AMX; it has 16 outputs
_panelled = Kept()


def packed_bytes():
    """Bytes held by rearranged copies of weights, over all live weights."""
    return sum(packed.nbytes for _, packed in _panelled.items())


def panels(weight, arranged):
    """``arranged(weight)`` as one vector of panels. Made once for each state of the weight."""
    return _panelled.of(weight, lambda: arranged(weight.detach()), key=arranged)


def split(matrix):
    """A matrix (K, lanes) in panels (K, width) of lanes, one after the other, the last one filled up with zeros: to one vector where
    that holds what is left."""
    wide, lanes, count = library().panel_width(), library().vector_width(), matrix.shape[1]
    whole, rest = count // wide * wide, count % wide
    parts = [matrix[:, :whole].unflatten(1, (-1, wide)).transpose(0, 1).reshape(-1)]
    if rest:
        zeros = (lanes if rest <= lanes else wide) - rest
        parts.append(F.pad(matrix[:, whole:], (0, zeros)).reshape(-1))
    return torch.cat(parts)


def _taps(weight):
    """A weight (O, C, kh, kw) or (O, C) as (taps, C, O)."""
    return weight.flatten(2).permute(2, 1, 0) if weight.dim() == 4 else weight.t()[None]


def by_output(weight):
    """Panels of a weight (O, C, kh, kw) or (O, C) as a matrix (taps*C, O), taps major."""
    return split(_taps(weight).flatten(0, 1))


def by_tap(weight):
    """Panels of a weight (O, C, kh, kw) as a matrix (C, kh*kw*O): all taps' outputs side by side."""
    return split(_taps(weight).transpose(0, 1).flatten(1))


def by_channel(weight):
    """A depthwise weight (C, 1, kh, kw) as (taps, C), in float32."""
    return weight.flatten(1).t().float().contiguous()


def in_tiles(weight):
    """Panels of up to 32 outputs of a weight (O, C, kh, kw) or (O, C): for each tap and 32 channels, filled up with zeros, a tile or
    two of 16 pairs of channels by 16 outputs, for AMX."""
    taps, lanes = _taps(weight), library().vector_width()
    outputs, wide = len(weight), library().panel_width()
    taps = F.pad(taps, (0, -outputs % lanes, 0, -taps.shape[1] % _TILE))
    # (taps*steps, pairs, 2, tiles, 16)
    tiles = taps.unflatten(2, (-1, lanes)).unflatten(1, (-1, _TILE // 2, 2)).flatten(0, 1)
    tiles = tiles.permute(0, 3, 1, 4, 2)  # (taps*steps, tiles, pairs, 16, 2)
    together = wide // lanes
    whole = tiles.shape[1] // together * together
    parts = [tiles[:, :whole].unflatten(1, (-1, together)).transpose(0, 1).reshape(-1), tiles[:, whole:].reshape(-1)]
    return torch.cat(parts)
