"""Convolution and linear layer on rows, tap by tap in float32 or wider. The contract stands in ``sige.kernels.ops``."""

import torch
import torch.nn.functional as F


def conv_rows(source, index, weight, bias, groups, tiling=None):
    wide = torch.promote_types(source.dtype, torch.float32)
    out_channels, in_per_group, height, width = weight.shape
    taps = weight.to(wide).reshape(groups, out_channels // groups, in_per_group, height * width)
    total = torch.zeros(index.shape[0], groups, out_channels // groups, dtype=wide, device=source.device)
    for tap in range(height * width):
        inside = index[:, tap] >= 0
        rows = source[index[:, tap].clamp(min=0)].to(wide) * inside[:, None]
        total += torch.einsum("ngc,goc->ngo", rows.reshape(len(rows), groups, in_per_group), taps[..., tap])
    result = total.reshape(index.shape[0], out_channels)
    if bias is not None:
        result = result + bias.to(wide)
    return result.to(weight.dtype)


def conv_tiles(source, index, tile, weight, bias, groups):
    high, wide = weight.shape[2:]
    rows, columns = tile
    windows = index.view(len(index), rows + high - 1, columns + wide - 1)
    taps = [windows[:, y : y + rows, x : x + columns].reshape(-1) for y in range(high) for x in range(wide)]
    return conv_rows(source, torch.stack(taps, 1), weight, bias, groups)


def conv_map(image, weight, bias, stride, padding, dilation, groups):
    wide = torch.promote_types(image.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    out = F.conv2d(image.to(wide), weight.to(wide), bias, stride, padding, dilation, groups)
    return out.to(image.dtype).contiguous(memory_format=torch.channels_last)


def linear_rows(rows, weight, bias):
    wide = torch.promote_types(rows.dtype, torch.float32)
    result = rows.to(wide) @ weight.to(wide).flatten(1).t()
    if bias is not None:
        result = result + bias.to(wide)
    return result.to(rows.dtype)
