"""Fused operators on a CPU: all that follows a product is done to its sums before they leave the registers.

Exact GELU is left to PyTorch, after the product and the norm's map. A whole map on its way to a convolution of few outputs is read
twice and written nowhere: for its statistics, and line by line as it is multiplied.
"""

import ctypes

import torch

from sige.kernels.activations import ACTIVATIONS, apply_
from sige.kernels.composed import fused as composed
from sige.kernels.composed.convolution import narrow
from sige.kernels.composed.gather import exchange_rows_
from sige.kernels.cpu.convolution import conv_map
from sige.kernels.cpu.library import After, Prefilled
from sige.kernels.cpu.product import Product, map_affine, multiplied, narrow_map, of_dtype, served
from sige.kernels.joined_rows import joined

# Tensors that `After` points to, and their places among the arguments of `activate_rows`.
_PLACES = dict(scale=1, shift=2, sample=3, target=6, positions=7)


def _apart(target, *read):
    """Whether nothing that is read while ``target`` is written lies in its memory; it is plain rows of the dtype of the first."""
    if target is None:
        return True
    held = target.untyped_storage().data_ptr()
    others = all(tensor is None or tensor.untyped_storage().data_ptr() != held for tensor in read)
    return others and target.dtype == read[0].dtype and target.is_contiguous()


def activated_at_once(rows, scale, shift, sample, activation, slope, target, positions):
    """Whether one compiled pass does all of an `activate_rows`."""
    return served(rows, scale, shift) and activation != "gelu" and _apart(target, rows)


class Activated:
    """What `activate_rows` gives in one compiled pass; like `sige.kernels.cpu.product.Product` for calls with arguments alike."""

    def __init__(self, *args):
        rows, *_, activation, slope, _, _ = args
        self._after = Prefilled(After, _PLACES, args, activation=ACTIVATIONS.index(activation), slope=slope)
        self._shape, self._kernel = tuple(rows.shape), of_dtype("activate_rows", rows)

    def run(self, rows, *more):
        """New rows; with a target the rows that were there."""
        rows = rows.contiguous()
        second = torch.empty_like(rows)
        after, copied = self._after.fill((rows, *more))  # what was copied lives as long as the call
        after.second = second.data_ptr()
        self._kernel(rows.data_ptr(), *self._shape, ctypes.addressof(after), torch.get_num_threads())
        return second


def activate_rows(rows, scale, shift, sample, activation, slope, target, positions, rest=None, rest_rows=None):
    rows = joined(rows, rest, rest_rows)
    if not served(rows, scale, shift):
        return composed.activate_rows(rows, scale, shift, sample, activation, slope, target, positions)
    args = rows, scale, shift, sample, activation, slope, target, positions
    if activated_at_once(*args):
        return Activated(*args).run(*args)
    known = "none" if activation == "gelu" else activation
    made = activate_rows(rows, scale, shift, sample, known, slope, None, None)
    made = apply_(made, activation, slope) if activation == "gelu" else made
    return made if target is None else exchange_rows_(target, positions, made)


def compiled_at_once(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw,
):  # fmt: skip
    """Whether one compiled product does all of a `conv_rows_fused`."""
    compiled = multiplied(count, source, weight, bias, vector, residual, scale, shift, groups=groups)
    return compiled and activation != "gelu" and _apart(target, source, residual)


def conv_rows_fused(
    source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift, activation, slope,
    target, positions, raw, rest=None, rest_rows=None, tiling=None,
):  # fmt: skip
    source = joined(source, rest, rest_rows)
    before = source, index, weight, bias, groups, count, vector, residual, residual_rows, sample
    args = *before, scale, shift, activation, slope, target, positions, raw
    if compiled_at_once(*args):
        return _with_empty(weight, *Product(*args).run(*args))
    args = *before, None, None, "none", slope, None, None, True
    if multiplied(count, source, weight, bias, vector, residual, groups=groups):
        made, second = Product(*args).run(*args)
    else:
        made, second = composed.conv_rows_fused(*args)[0], None
    if scale is not None or activation != "none" or target is not None:
        second = activate_rows(made, scale, shift, sample, activation, slope, target, positions)
    return _with_empty(weight, made if raw else None, second)


def _with_empty(weight, raw, second):
    empty = weight.new_empty(0, weight.shape[0]) if raw is None or second is None else None
    return empty if raw is None else raw, empty if second is None else second


def normalize_map(image, groups, weight, bias, eps, activation, slope):
    if not image.numel() or not served(image, weight, bias):
        return composed.normalize_map(image, groups, weight, bias, eps, activation, slope)
    image = image.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = image.shape
    scale, shift = map_affine(image, groups, weight, bias, eps) if groups else (None, None)
    rows, sample = image.permute(0, 2, 3, 1).reshape(-1, channels), None
    if groups and batch > 1:
        sample = torch.arange(batch).repeat_interleave(height * width)
    rows = activate_rows(rows, scale, shift, sample, activation, slope, None, None)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def conv_map_fused(
    image, weight, bias, stride, padding, dilation, groups, norm_groups, norm_weight, norm_bias, eps, activation, slope
):
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    compiled = narrow(weight, *geometry, groups) and activation != "gelu" and image.numel()
    if not compiled or not served(image, weight, bias, norm_weight, norm_bias):
        image = normalize_map(image, norm_groups, norm_weight, norm_bias, eps, activation, slope)
        return conv_map(image, weight, bias, *geometry, groups)
    image = image.contiguous(memory_format=torch.channels_last)
    affine = map_affine(image, norm_groups, norm_weight, norm_bias, eps) if norm_groups else (None, None)
    return narrow_map(image, weight, bias, *affine, activation, slope)
