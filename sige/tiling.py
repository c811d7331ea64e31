"""Which tiles of a convolution's output an edit makes active: SIGE's rule and FISEdit's."""

import torch.nn.functional as F

from sige import masks
from sige.errors import PolicyError


def input_tiles(mask, window, block):
    """FISEdit's rule: the blocks of the input that hold an edited position, as tiles of the output.

    mask: bool (B, H, W) at the resolution of ``window.source_size``, before up-sampling.   block: (rows, columns) there.
    Returns ((rows, columns) of an output tile, bool grid (B, tiles down, tiles across)).
    """
    return output_tile(window, block), masks.in_tiles(mask, block)


def output_tile(window, block):
    """The tile (rows, columns) of a convolution's output that stands at the place of a block of its input."""
    return tuple(max(1, side * window.scale // step) for side, step in zip(block, window.stride))


def window_tiles(mask, window, block, overhang):
    """SIGE's rule: an output tile is active when its input window, halo included, meets the mask.

    mask: bool (B, H, W) at the resolution of ``window.size``.   block: side of a tile at stride 1.
    overhang: whether the grid takes in tiles that lie beyond the edges. Returns as :func:`input_tiles`.
    """
    out, reach, pitch, pads = [], [], [], []
    for axis in range(2):
        stride = window.stride[axis]
        tile = (block - 1) // stride + 1
        extent = (tile - 1) * stride + window.dilation[axis] * (window.kernel[axis] - 1) + 1
        before = window.padding[axis]
        count = -(-window.out_size[axis] // tile)
        if overhang:
            count = max(count, (window.size[axis] + before) // (tile * stride) + 1)
        after = max(0, (count - 1) * tile * stride + extent - before - window.size[axis])
        out.append((tile, count)), reach.append(extent), pitch.append(tile * stride), pads.append((before, after))
    padded = F.pad(mask[:, None].float(), (*pads[1], *pads[0]))
    pooled = F.max_pool2d(padded, reach, pitch)[:, 0, : out[0][1], : out[1][1]] > 0
    if out[0][0] != out[1][0]:
        raise PolicyError(f"policy geometry='window' needs equal strides, not {window.stride}: use geometry='level'")
    return (out[0][0], out[1][0]), pooled
