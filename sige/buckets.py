"""Buckets: active sets filled up to one of few sizes, so that masks of about one size give plans of one shape.

Plans of one shape run the same programs (``sige.replay``), and a CUDA graph captured for one serves all. The spare places go to the
tiles nearest to the edit, which is where an incremental result errs most; nothing is ever cut off.
"""

import torch

from sige import masks


def capacity(count, growth):
    """The smallest bucket that holds ``count`` tiles: buckets grow by the factor ``growth``, by one tile at least, from 1 on."""
    bucket = min(count, 1)
    while bucket < count:
        bucket = max(bucket + 1, int(bucket * growth))
    return bucket


def filled(tiles, growth):
    """A bool grid (B, rows, columns) of active tiles with the nearest others beside them, in each sample as many as the bucket of the
    fullest one holds. A grid without a tile stays empty."""
    batch = tiles.shape[0]
    wanted = min(capacity(int(tiles.flatten(1).sum(1).max()), growth), tiles[0].numel())
    nearness = tiles.to(torch.int32)  # a tile counts once for every ring of the growing sets that it is in
    grown = tiles
    while wanted and int(grown.flatten(1).sum(1).min()) < wanted:
        wider = masks.dilate_box(grown, 1)
        wider = wider | ~wider.flatten(1).any(1).view(batch, 1, 1)  # a sample without an edit: any tile is as near
        nearness += wider
        grown = wider
    nearest = nearness.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :wanted]
    return torch.zeros_like(tiles).flatten(1).scatter_(1, nearest, True).view_as(tiles)
