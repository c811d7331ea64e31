"""Affine map and tile moments on rows, written out. The contract stands in ``sige.kernels.ops``."""

import torch


def affine_rows(rows, scale, shift, sample):
    wide = torch.promote_types(rows.dtype, torch.float32)
    if sample is not None:
        scale, shift = scale[sample], shift[sample]
    return (rows.to(wide) * scale.to(wide) + shift.to(wide)).to(rows.dtype)


def tile_moments(rows, tiles, groups):
    values = rows.double().reshape(tiles, len(rows) // max(tiles, 1), groups, rows.shape[1] // groups)
    mean = values.mean((1, 3))
    centred = values - mean[:, None, :, None]
    return mean.float(), centred.square().sum((1, 3)).float()
