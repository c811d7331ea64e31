"""Metal's kernels: compiled from the ``.metal`` files beside this one, launched, or declined with a reason.

No Apple GPU has run these kernels yet. They are proven on CPUs: the test suite compiles the very same text as C++ and runs it
thread by thread (``tests/kernels/metal_shim``). ``python -m sige.kernels.mps.check`` tests and times them on a Mac.

A ``.metal`` file leaves its number types open; `text` puts them in front as macros, and each set of types is compiled once.
"""

import functools
from pathlib import Path

import torch

from sige.kernels.backends import Declined

NUMBERS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}
WORDS = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}  # bytes -> a type that is copied as it is
FILES = ("gather", "convolution", "normalization", "statistics")
_MOST_ROWS = (1 << 31) - 1  # row numbers within a launch are 32 bits wide


def serve(*tensors):
    """Decline floating-point tensors of a dtype that the kernels do not know, and more rows than they can count."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in NUMBERS:
            raise Declined(
                f"its kernels know float32, float16 and bfloat16, not {str(tensor.dtype).removeprefix('torch.')}"
            )
        if tensor.shape[0] > _MOST_ROWS:
            raise Declined(f"its kernels count up to {_MOST_ROWS} rows, not {tensor.shape[0]}")


def row_numbers(index):
    """``index``, contiguous; declines what is not int64, which the kernels would misread."""
    if index.dtype != torch.int64:
        raise Declined(f"its kernels read row numbers in int64, not {str(index.dtype).removeprefix('torch.')}")
    return index.contiguous()


@functools.lru_cache(maxsize=None)
def source(file):
    """The text of one of `FILES` as it is shipped."""
    return Path(__file__).with_name(f"{file}.metal").read_text(encoding="utf-8")


def text(file, types):
    """What is compiled: ``source(file)`` behind one macro for each of ``types``, a tuple of (name, value)."""
    return "".join(f"#define {name} {value}\n" for name, value in types) + source(file)


def compile_text(metal):
    """Compile Metal source; the library's kernels are its attributes. Tests put their C++ stand-in here."""
    return torch.mps.compile_shader(metal)


@functools.lru_cache(maxsize=None)
def library(file, types):
    """The compiled library of ``file`` for ``types``; compiled once."""
    return compile_text(text(file, types))


def run(file, kernel, types, arguments, threads, group):
    """Launch ``kernel`` of ``file`` over ``threads`` threads in groups of ``group``, each a tuple of one to three numbers.

    types: dict of macro -> type, as the ``.metal`` file names them.   arguments: tensors, and lists of ints, Metal's ``long``.
    An empty grid is no launch.
    """
    if 0 not in threads:
        launched = getattr(library(file, tuple(types.items())), kernel)
        launched(*arguments, threads=list(threads), group_size=list(group))


def each(rows, width):
    """Grid of one thread for each of ``width`` columns of ``rows`` rows: (threads, group)."""
    across = min(width, 64)
    return (width, rows), (across, max(1, min(rows, 256 // max(across, 1))))
