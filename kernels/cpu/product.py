"""Products of rows and weights by the compiled kernels: which calls they serve."""

import ctypes
import functools
import weakref

import torch

from sige.kernels import backends
from sige.kernels.activations import ACTIVATIONS
from sige.kernels.cpu import panels, winograd
from sige.kernels.cpu.library import Prefilled, Task, address, library, plain
from sige.kernels.kept import state

# Linear layers of more rows than these oneDNN does faster, on an Intel Xeon. Of float32 it takes 0.67 to 0.94 of the compiled product's
# time from 400 rows on, 0.75 to 1.01 with what follows them, and 0.87 to 1.19 with 162. Of bfloat16 those of no more rows and weights
# take 0.65 to 1.3 of oneDNN's time, larger ones up to 3.2 of it.
FLOAT_ROWS = 384
LINEAR_ROWS, LINEAR_WEIGHTS = 1024, 1 << 19
# What follows a product, as arguments of `conv_rows_fused`, where nothing does.
NOTHING = (None,) * 6 + ("none", 0.0, None, None, True)
# Tensors that a `Task` points to, and their places among those arguments.
_PLACES = dict(
    source=0, index=1, bias=3, vector=6, residual=7, residual_rows=8, sample=9, scale=10, shift=11, target=14, positions=15
)  # fmt: skip


@functools.lru_cache(maxsize=None)
def _zeros(channels, dtype):
    return torch.zeros(channels, dtype=dtype)


@functools.lru_cache(maxsize=None)
def _multiplies_tiles():
    found = library().multiplies_tiles()
    if found < 0:
        backends.say_once(
            "kernel backend 'cpu' composes its bfloat16 products of PyTorch's operators: the system does not let this process multiply "
            "tiles (AMX), which the CPU could"
        )
    return found > 0


def served(*tensors):
    """Whether the compiled kernels are there and serve these tensors (None are left out): float32, or bfloat16, all alike."""
    given = {tensor.dtype for tensor in tensors if tensor is not None}
    return len(given) == 1 and given <= {torch.float32, torch.bfloat16} and library() is not None


def multiplied(rows, source, weight, *others, groups=1):
    """Whether a product for so many ``rows`` is compiled: depthwise ones; ungrouped ones of several taps, in bfloat16 where the CPU
    multiplies tiles of it; little linear layers."""
    if not served(source, weight, *others) or groups != 1 and not weight.shape[0] == source.shape[1] == groups:
        return False
    if groups != 1 or source.dtype == torch.bfloat16 and not _multiplies_tiles():
        return groups != 1
    if weight.dim() == 4 and weight.shape[2:].numel() > 1:
        return True
    if source.dtype == torch.float32:
        return rows <= FLOAT_ROWS
    return rows <= LINEAR_ROWS and weight.numel() <= LINEAR_WEIGHTS


def of_dtype(name, tensor):
    """The kernel of a name for a tensor's dtype."""
    return getattr(library(), name if tensor.dtype == torch.float32 else f"{name}_bfloat16")


def product(source, index, weight, bias, count, quads=None):
    """Rows (count, O): at ``index`` (count or more, taps) of ``source`` (N, C), or of its first rows where ``index`` is None, or by
    ``quads``, as `winograd` finds them; of a depthwise convolution where ``weight`` has fewer channels than ``source``. All numbers are
    float32, or all bfloat16."""
    args = source, index, weight, bias, 1, count, *NOTHING
    return Product(*args, quads=quads).run(*args)[0]


class Product:
    """A product and what follows it, as the compiled kernels take it. Arguments are those of `sige.kernels.ops.conv_rows_fused`, in its
    order, up to ``raw``; ``quads`` as `product` has them.

    What follows from their shapes and dtypes, and from the numbers among them, is worked out here: one product runs again and again
    with tensors alike.
    """

    def __init__(self, *args, quads=None):
        source, index, weight, _, _, self._count, vector, *_, scale, _, activation, slope, target, _, raw = args
        self._dtype, self._shape, channels = source.dtype, (self._count, weight.shape[0]), source.shape[1]
        self._raw = raw
        self._second = target is not None or scale is not None or activation != "none"
        self._picks = vector is not None and vector.shape[0] > 1
        self._depthwise = weight.shape[1] < channels
        self._kernel = of_dtype("conv_depthwise" if self._depthwise else "conv_rows", source)
        self._task = Prefilled(
            Task, _PLACES, args, count=self._count, taps=1 if index is None or index.dim() == 1 else index.shape[1],
            channels=channels, outputs=weight.shape[0], activation=ACTIVATIONS.index(activation), slope=slope,
            zeros=address(_zeros(channels, source.dtype)),
        )  # fmt: skip
        self._quads, self._known = quads, None

    def run(self, *args):
        """What `conv_rows_fused` gives, None in place of empty results."""
        out = torch.empty(self._shape, dtype=self._dtype) if self._raw else None
        second = torch.empty(self._shape, dtype=self._dtype) if self._second else None
        if self._count == 0:
            return out, second
        task, copied = self._task.fill(args)  # what was copied lives as long as the call
        if self._picks:
            task.picks = task.sample
        if out is not None:
            task.raw = task.partial = out.data_ptr()
        if second is not None:
            task.second = second.data_ptr()
            task.partial = task.partial or task.second
        quads, panelled = self._arranged(args[0], args[1], args[2])
        task.panels = panelled.data_ptr()
        if quads is None:
            self._kernel(ctypes.addressof(task), torch.get_num_threads())
        else:
            side, windows, members = quads
            library().conv_quads(
                ctypes.addressof(task), windows.data_ptr(), members.data_ptr(), windows.shape[0], side, torch.get_num_threads()
            )  # fmt: skip
        return out, second

    def _arranged(self, source, index, weight):
        """(quads, panels of the weight), found once for an index and a state of the weight."""
        now = state(weight)
        if self._known is None or self._known[0]() is not index or self._known[1] != now:
            quads, arranged = self._quads, panels.in_tiles
            if self._depthwise:
                arranged = panels.by_channel
            elif self._dtype == torch.float32:
                quads = quads or winograd.quads(index, self._count, source.shape[0], weight)
                arranged = panels.by_output if quads is None else winograd.arranged(quads)
            seen = _nothing if index is None else weakref.ref(index)
            self._known = seen, now, quads, panels.panels(weight, arranged)
        return self._known[2:]


def _nothing():
    return None


def narrow_map(image, weight, bias, scale=None, shift=None, activation="none", slope=0.0):
    """A convolution to a few channels, such as a U-Net's last, whose output is as large as its input: ``image`` (B, C, H, W),
    channels-last, in float32. Each line's products with all taps are made once, then shifted and added. Before, the image goes
    through ``scale`` and ``shift`` (B, C) and the activation, line by line too."""
    batch, channels, height, width = image.shape
    outputs, _, high, wide = weight.shape
    out = image.new_empty(batch, height, width, outputs)
    packed, bias = panels.panels(weight, panels.by_tap), plain(bias)
    library().conv_narrow(
        image.data_ptr(), batch, height, width, channels, packed.data_ptr(), high, wide, outputs, address(bias), address(scale),
        address(shift), ACTIVATIONS.index(activation), slope, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def map_affine(image, groups, weight, bias, eps):
    """Scale and shift (B, C) of a group norm of a whole map (B, C, H, W), channels-last, by its own statistics, summed in float64 but
    for the 256 pixels of a part."""
    batch, channels, height, width = image.shape
    scale, shift = image.new_empty(batch, channels), image.new_empty(batch, channels)
    weight, bias = plain(weight), plain(bias)
    of_dtype("map_statistics", image)(
        address(image), batch, height * width, channels, groups, address(weight), address(bias), eps, address(scale), address(shift),
        torch.get_num_threads(),
    )  # fmt: skip
    return scale, shift
