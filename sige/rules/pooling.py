"""Pooling: the level's active positions, each from the rows under its window."""

import dataclasses

import torch
import torch.nn.functional as F

from sige.active_tensor import ActiveTensor, full_view
from sige.kernels import ops
from sige.rules.fallback import otherwise
from sige.rules.registry import rule
from sige.rules.resampling import mixed, source_of
from sige.windows import Window, window_rows

_IMAGE = ("b", "f", "h", "w")


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Geometry of a pooling."""

    window: Window

    @property
    def out_size(self):
        """(H, W) of what it gives."""
        return self.window.out_size

    def reads(self, chosen):
        """(index, inside): the (n, kh*kw) rows that each position of ``chosen`` reads, another one of its own in place of those outside
        the map, and whether each is inside."""
        index = window_rows(chosen.content, self.window)[: chosen.count]
        inside = index >= 0
        index = torch.where(inside, index, index.amax(1, keepdim=True))
        return index.to(chosen.device), inside.to(chosen.device)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _geometry(x, kernel, stride, padding, dilation, ceil_mode):
    """The pooling of an active map, None where there is no rule: what hangs over the map's lower border by ``ceil_mode``."""
    if not isinstance(x, ActiveTensor) or not x.settled or x.axes != _IMAGE:
        return None
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    size = (x.active.height, x.active.width)
    free = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    if min(free) < 0 or ceil_mode and any(free[i] % stride[i] for i in (0, 1)):
        return None
    out = tuple(free[i] // stride[i] + 1 for i in (0, 1))
    return Pooling(Window(size, out, kernel, stride, padding, dilation))


def _pooled(forward, x, geometry, name, whole, of_rows):
    """``whole(image)`` of a full map, ``of_rows(source, index, inside)`` at an edit's positions; plain where the level runs dense."""
    if not forward.is_sparse_level(*geometry.out_size):
        return whole(forward.densify(x))
    level = forward.plan.level_set(*geometry.out_size)
    source = source_of(forward, x, name)
    reads = forward.plan.reads_of(level, geometry)
    if level.full:
        image = whole(full_view(source.to(x.dtype), x.active, _IMAGE))
        return ActiveTensor(image.permute(0, 2, 3, 1).reshape(-1, image.shape[1]), level, _IMAGE)
    return ActiveTensor(of_rows(source, *reads), level, _IMAGE)


@rule(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    forward, func, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    stride = kernel_size if stride is None else stride
    geometry = None if return_indices else _geometry(input, kernel_size, stride, padding, dilation, ceil_mode)
    if geometry is None:
        return otherwise(forward, func, (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices), {})

    def whole(image):
        return F.max_pool2d(image, kernel_size, stride, padding, dilation, ceil_mode)

    def of_rows(source, index, inside):
        rows = ops.gather_rows(source, index.flatten()).to(input.dtype)
        return rows.view(*index.shape, source.shape[1]).amax(1)

    return _pooled(forward, input, geometry, "max_pool2d", whole, of_rows)


@rule(F.avg_pool2d)
def avg_pool2d(
    forward,
    func,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    geometry = None if divisor_override else _geometry(input, kernel_size, stride, padding, 1, ceil_mode)
    if geometry is None:
        return otherwise(forward, func, (input, *args), {})

    def of_rows(source, index, inside):
        taken = inside.sum(1, keepdim=True)
        return mixed(
            source,
            index,
            inside / (torch.full_like(taken, index.shape[1]) if count_include_pad else taken),
            input.dtype,
        )

    return _pooled(forward, input, geometry, "avg_pool2d", lambda image: func(image, *args), of_rows)
