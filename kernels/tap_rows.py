"""The rows that the taps of a convolution read, for backends that read each where it lies: of whole tiles, and of a whole map."""

import functools

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

_of_tiles = WeakTensorKeyDictionary()


def of_tiles(index, tile, high, wide):
    """Windows of tiles, ``index`` (T, (h+high-1)*(w+wide-1)), as the rows that each position's taps read.

    tile: (h, w). Returns (T*h*w, high*wide); made once an index.
    """
    found = _of_tiles.setdefault(index, {})
    if (tile, high, wide) not in found:
        rows, columns = tile
        windows = index.view(len(index), rows + high - 1, columns + wide - 1)
        taps = [windows[:, y : y + rows, x : x + columns].reshape(-1) for y in range(high) for x in range(wide)]
        found[tile, high, wide] = torch.stack(taps, 1)
    return found[tile, high, wide]


@functools.lru_cache(maxsize=256)
def of_map(batch, height, width, kernel, stride, padding, dilation):
    """The rows of maps (batch, height, width) that a convolution's taps read at each of its positions, -1 in the padding.

    Pairs are (vertical, horizontal). Returns (batch*H'*W', kh*kw) and the output's size (H', W').
    """
    (top, left), reach = padding, [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    numbers = torch.arange(batch * height * width).view(batch, height, width)
    numbers = F.pad(numbers, (left, left, top, top), value=-1)
    high, wide = ((numbers.shape[1 + axis] - reach[axis] - 1) // stride[axis] + 1 for axis in (0, 1))
    taps = [
        numbers[:, y : y + high * stride[0] : stride[0], x : x + wide * stride[1] : stride[1]][:, :high, :wide].reshape(
            -1
        )
        for y in range(0, reach[0] + 1, dilation[0])
        for x in range(0, reach[1] + 1, dilation[1])
    ]
    return torch.stack(taps, 1), (high, wide)
