"""3x3 convolutions whose positions are neighbours, four outputs at a time: Winograd's F(2x2, 3x3) in the compiled kernels.

Four outputs take 16 products a pair of channels in place of 36; 9 where the map is read enlarged twice, to nearest. Positions alone,
and maps of a few positions, for which reading 16 matrices takes longer than the products, are left to the product tap by tap.
"""

import functools

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sige.kernels.cpu.library import address, library, plain
from sige.kernels.cpu.panels import split

LEAST = 48  # quads, or rows: fewer take as long as reading the weights from memory
OVERHEAD = 1.25  # time of a product with transformed numbers, transforming included, to one tap's
# Of input and of output. Measured on two Zen 5 cores: at 32 to 48 channels 0.77 to 0.99 of the time tap by tap, from 64 on 0.6 to 0.8;
# where input channels fill no whole vectors and outputs are few, more (1.24 for 36 to 32).
LEAST_CHANNELS = 32
_of_index = WeakTensorKeyDictionary()
# Rows: what stands before the weights of each line of taps.
_PLAIN = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_ENLARGED = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))


def transformed(weight):
    """Panels of a weight (O, C, 3, 3) as (16*C, O): the matrices of F(2x2, 3x3)."""
    return split(_transformed(weight, _PLAIN))


def transformed_enlarged(weight):
    """Panels of a weight (O, C, 3, 3) as (9*C, O): the matrices of F(2x2, 3x3) that a map enlarged twice leaves."""
    return split(_transformed(weight, _ENLARGED))


def arranged(found):
    """Which of the two `quads` are multiplied with."""
    return transformed if found[0] == 4 else transformed_enlarged


def _transformed(weight, factors):
    factors = torch.tensor(factors, dtype=torch.float64)
    made = torch.einsum("yi,xj,ocij->yxco", factors, factors, weight.double())
    return made.flatten(0, 2).to(weight.dtype)


def _quads(index, rows):
    """(side, windows, members) of the outputs: quads that read side x side rows each; None where they do not lie so."""
    taken = plain(index)
    places, members = taken.new_empty(rows), taken.new_empty(len(taken), 4)
    for side in (4, 3):
        windows = taken.new_empty(len(taken), side * side)
        made = library().quads(
            address(taken), len(taken), side, rows, address(places), address(members), address(windows)
        )
        if made:
            return side, windows[:made].clone(), members[:made].clone()
    return None


def _first(found, count):
    """Quads with the first ``count`` outputs alone: each is what it is among all, to the bit."""
    side, windows, members = found
    members = members.where(members < count, -1)
    some = (members >= 0).any(1)
    return side, windows[some], members[some]


def _suits(weight):
    return (
        weight.dim() == 4
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and weight.dtype == torch.float32
    )


def _worth(found, count):
    return found[0] ** 2 * OVERHEAD * max(len(found[1]), LEAST) < 9 * count


def quads(index, count, rows, weight):
    """(side, windows, members) of the first ``count`` outputs of a convolution that reads ``index`` (count or more, taps) of a source
    of ``rows`` rows, where that is faster so; else None. Found once an index."""
    if index is None or not _suits(weight):
        return None
    held = _of_index.setdefault(index, {})
    if not held:
        found = _quads(index, rows) if len(index) >= LEAST else None
        held[len(index)] = found if found is not None and _worth(found, len(index)) else None
    if count not in held:
        found = held[len(index)]
        held[count] = None if found is None else _first(found, count)
    return held[count]


def quads_of_map(image, weight, stride, padding, dilation):
    """What `quads` gives, of a whole map (B, C, H, W) to one as large; None where that is not faster. Pairs are (down, across)."""
    batch, _, height, width = image.shape
    if not _suits(weight) or (stride, padding, dilation) != ((1, 1),) * 3:
        return None
    found = _of_map(batch, height, width)
    return found if _worth(found, batch * height * width) else None


@functools.lru_cache(maxsize=32)
def _of_map(batch, height, width):
    numbers = torch.arange(batch * height * width).view(batch, height, width)
    numbers = F.pad(numbers, (1, 1 + width % 2, 1, 1 + height % 2), value=-1)
    windows = numbers.unfold(1, 4, 2).unfold(2, 4, 2)
    return 4, windows.reshape(-1, 16), windows[..., 1:3, 1:3].reshape(-1, 4)
