"""Affine map and tile moments on rows, on a CPU."""

import torch


def affine_rows(rows, scale, shift, sample):
    if sample is not None:
        scale, shift = scale.index_select(0, sample), shift.index_select(0, sample)
    return torch.addcmul(shift, rows, scale) if scale.dtype == rows.dtype else (rows * scale + shift).to(rows.dtype)


def tile_moments(rows, tiles, groups):
    # Sums over the positions first: channels are contiguous, so that pass is vectorised; the rest is small.
    values = rows.view(tiles, len(rows) // max(tiles, 1), rows.shape[1]).float()
    width = rows.shape[1] // groups
    mean = values.sum(1).view(tiles, groups, width).sum(2) / (values.shape[1] * width)
    centred = values - mean.repeat_interleave(width, 1)[:, None]
    return mean, centred.square_().sum(1).view(tiles, groups, width).sum(2)
