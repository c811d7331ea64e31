"""Affine map and statistics of an edited map, on rows, on a CPU."""

import torch


def affine_rows(rows, scale, shift, sample):
    if sample is not None:
        scale, shift = scale.index_select(0, sample), shift.index_select(0, sample)
    return torch.addcmul(shift, rows, scale) if scale.dtype == rows.dtype else (rows * scale + shift).to(rows.dtype)


def update_statistics_(rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps):
    # Of few tiles the calls cost more than the numbers, so this makes few: both sums go through one reduction over a group's channels.
    tiles, channels = tile_index.shape[0], rows.shape[1]
    batch, width, wide = centre.shape[0], channels // groups, torch.promote_types(rows.dtype, torch.float32)
    middle = centre.to(wide).unsqueeze(2).expand(batch, groups, width).reshape(batch, channels)
    if sample is not None:
        middle = middle.index_select(0, sample).unsqueeze(1)
    both = torch.empty(tiles, 2, channels, dtype=wide, device=rows.device)
    apart = rows.view(tiles, rows.shape[0] // max(tiles, 1), channels) - middle
    # Sums over the positions first: channels are contiguous, so that pass is vectorised; the rest is small.
    torch.sum(apart, 1, out=both[:, 0])
    torch.sum(apart.square_(), 1, out=both[:, 1])
    new = both.view(tiles, 2 * groups, width).sum(2).to(sums.dtype)

    old = sums.index_select(0, tile_index)
    difference = new.to(totals.dtype) - old
    if sample is None:
        totals = totals + difference.sum(0, keepdim=True)
    else:
        totals = totals.index_add(0, sample, difference)
    first, second = (totals / map_values).view(batch, 2, groups, 1).unbind(1)
    scale = torch.addcmul(second, first, first, value=-1).clamp_(min=0).add_(eps).rsqrt_()
    mean = first + centre.unsqueeze(2)
    scale = scale.expand(batch, groups, width) if weight is None else scale * weight.view(groups, width)
    shift = (mean * scale).neg_() if bias is None else bias.view(groups, width) - mean * scale
    # The write comes last: whatever fails, fails before it.
    sums.index_copy_(0, tile_index, new)
    scale, shift = scale.reshape(batch, channels), shift.reshape(batch, channels)
    return old, totals, scale.to(rows.dtype), shift.to(rows.dtype)
