"""Affine map and statistics of an edited map, on rows, written out. The contract stands in ``sige.kernels.ops``."""

import torch


def affine_rows(rows, scale, shift, sample):
    wide = torch.promote_types(rows.dtype, torch.float32)
    if sample is not None:
        scale, shift = scale[sample], shift[sample]
    return (rows.to(wide) * scale.to(wide) + shift.to(wide)).to(rows.dtype)


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    wide, channels = totals.dtype, rows.shape[1]
    of_tile = torch.zeros_like(tile_index) if sample is None else sample
    values = rows.to(wide).reshape(len(of_tile), len(rows) // max(len(of_tile), 1), groups, channels // groups)
    apart = values - centre.to(wide)[of_tile][:, None, :, None]
    new = torch.cat([apart.sum((1, 3)), apart.square().sum((1, 3))], 1)

    # The totals change by what is remembered, which may be coarser: of a tile that changes again no rounding is left.
    old, new = sums[tile_index], new.to(sums.dtype)
    totals = totals.index_add(0, of_tile, new.to(wide) - old.to(wide))
    first, second = (totals / map_values).chunk(2, 1)
    mean, variance = centre + first, (second - first.square()).clamp(min=0)
    rstd = (variance + eps).rsqrt()

    # Of each group's channels.
    mean, rstd = (part.repeat_interleave(channels // groups, 1) for part in (mean, rstd))
    scale = rstd if weight is None else rstd * weight.to(wide)
    shift = -mean * scale if bias is None else bias.to(wide) - mean * scale
    sums[tile_index] = new
    return old, totals, scale.to(rows.dtype), shift.to(rows.dtype)
