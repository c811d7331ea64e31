"""Products of rows and weights by the compiled kernels: which calls they serve."""

import ctypes
import functools

import torch

from sige.kernels import backends
from sige.kernels.activations import ACTIVATIONS
from sige.kernels.cpu import panels, winograd
from sige.kernels.cpu.library import Task, address, library, plain

# Linear layers of more rows than these oneDNN does faster, on an Intel Xeon. Of float32 it takes 0.67 to 0.94 of the compiled product's
# time from 400 rows on, 0.75 to 1.01 with what follows them, and 0.87 to 1.19 with 162. Of bfloat16 those of no more rows and weights
# take 0.65 to 1.3 of oneDNN's time, larger ones up to 3.2 of it.
FLOAT_ROWS = 384
LINEAR_ROWS, LINEAR_WEIGHTS = 1024, 1 << 19


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
    if not served(source, weight, *others) or groups != 1 and not len(weight) == source.shape[1] == groups:
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
    return finished_product(source, index, weight, bias, count, quads=quads)[0]


def finished_product(
    source, index, weight, bias, count, vector=None, residual=None, residual_rows=None, sample=None, scale=None, shift=None,
    activation="none", slope=0.0, target=None, positions=None, raw=True,
    quads=None,
):  # fmt: skip
    """What `sige.kernels.ops.conv_rows_fused` gives, None in place of empty results."""
    outputs, dtype, threads = weight.shape[0], source.dtype, torch.get_num_threads()
    shape = count, outputs
    out = torch.empty(shape, dtype=dtype) if raw else None
    wanted = target is not None or scale is not None or activation != "none"
    second = torch.empty(shape, dtype=dtype) if wanted else None
    if count == 0:
        return out, second
    picks = sample if vector is not None and len(vector) > 1 else None
    # Named, so that what had to be copied lives as long as the call.
    given = dict(
        source=source, index=index, bias=bias, vector=vector, picks=picks, residual=residual, residual_rows=residual_rows,
        scale=scale, shift=shift, sample=sample, target=target, positions=positions,
    )  # fmt: skip
    given = {name: plain(tensor) for name, tensor in given.items() if tensor is not None}
    taps, channels = 1 if index is None or index.dim() == 1 else index.shape[1], source.shape[1]
    given.update(zeros=_zeros(channels, dtype), raw=out, second=second)
    name, arranged = "conv_rows", panels.in_tiles
    if weight.shape[1] < channels:
        name, arranged = "conv_depthwise", panels.by_channel
    elif dtype == torch.float32:
        quads = quads or winograd.quads(index, count, len(source), weight)
        arranged = panels.by_output if quads is None else winograd.arranged(quads)
        given.update(partial=second if out is None else out)
    given.update(panels=panels.panels(weight, arranged))
    task = Task(
        count=count, taps=taps, channels=channels, outputs=outputs, activation=ACTIVATIONS.index(activation), slope=slope,
        **{name: address(tensor) for name, tensor in given.items()},
    )  # fmt: skip
    if quads is not None:
        side, windows, members = quads
        library().conv_quads(ctypes.addressof(task), address(windows), address(members), len(windows), side, threads)
    else:
        of_dtype(name, source)(ctypes.addressof(task), threads)
    return out, second


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
