"""The compiled kernels of the CPU: built once on a machine, kept in the user's cache folder, and why not where they cannot be.

Building needs GCC's C++ compiler (``CXX``, or ``g++``, on Linux) and takes a few seconds. The file's name is a digest of the source,
the compiler, its options and the CPU's features, so that a folder shared by several machines serves each its own.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from sige.kernels import backends

HEADERS, SOURCES = (sorted(Path(__file__).parent.glob(pattern)) for pattern in ("*.h", "*.cpp"))
_COMPILE = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-c")
_SECONDS = 300  # after which a compiler is given up
_LETTERS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
_ARGUMENTS = {  # p: the address of a tensor or a structure, or None; n: a whole number; f, d: floats
    "conv_rows": "pn",
    "conv_rows_bfloat16": "pn",
    "conv_depthwise": "pn",
    "conv_depthwise_bfloat16": "pn",
    "conv_quads": "pppnnn",
    "quads": "pnnnppp",
    "conv_narrow": "pnnnnpnnnpppnfpn",
    "activate_rows": "pnnpn",
    "activate_rows_bfloat16": "pnnpn",
    "update_statistics": "pnnnnpppnppppddpppn",
    "update_statistics_bfloat16": "pnnnnpppnppppddpppn",
    "map_statistics": "pnnnnppdppn",
    "map_statistics_bfloat16": "pnnnnppdppn",
    "multiplies_tiles": "",
    "panel_width": "",
    "vector_width": "",
}
# Functions that give a whole number.
_NUMBERS = ("quads", "multiplies_tiles", "panel_width", "vector_width")


class Unbuilt(Exception):
    """Why there are no compiled kernels, in a few words."""


def folder():
    """Where built libraries are kept: ``sige/kernels`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sige" / "kernels"


def compiler():
    """The C++ compiler's command, in parts. Unbuilt where there is none."""
    if platform.system() != "Linux":
        raise Unbuilt(f"compiled kernels are built on Linux, not on {platform.system()}")
    name, *options = shlex.split(os.environ.get("CXX") or "g++")
    found = shutil.which(name)
    if found is None:
        raise Unbuilt(f"there is no C++ compiler {name!r}: install g++, or name one in CXX, for faster edits")
    return [found, *options]


def _run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuilt(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Unbuilt(f"{command[0]} failed: {last}")
    return done.stdout


def _features():
    """What sets this CPU apart for a compiler."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _build(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        objects, library = [Path(scratch, source.stem + ".o") for source in SOURCES], Path(scratch, path.name)
        for source, made in zip(SOURCES, objects):
            _run(*compiler(), *_COMPILE, str(source), "-o", str(made))
        # Linked without OpenMP: a second copy of its threads beside PyTorch's would be in their way.
        _run(*compiler(), "-shared", *map(str, objects), "-o", str(library))
        os.replace(library, path)  # another process may do the same at the same time


def _open(path):
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # such as a PyTorch whose OpenMP is another
        raise Unbuilt(f"the compiled kernels cannot be loaded: {error}") from error
    for name, letters in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = [_LETTERS[letter] for letter in letters]
        function.restype = ctypes.c_int64 if name in _NUMBERS else None
        setattr(library, name, _announced(name, function))
    return library


def _announced(name, function):
    """The function, which tells a profiler of itself where one listens, as PyTorch's operators do."""

    def call(*args):
        if not torch.autograd._profiler_enabled():
            return function(*args)
        with torch.profiler.record_function(f"sige::{name}"):
            return function(*args)

    return call


def _made():
    version = _run(*compiler(), "--version")
    told = "\0".join((*(source.read_text() for source in (*HEADERS, *SOURCES)), version, *_COMPILE, _features()))
    path = folder() / f"cpu-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if path.is_file():
        return _open(path)
    try:
        _build(path)
        return _open(path)
    except OSError:  # no place there, or none to write to
        with tempfile.TemporaryDirectory() as elsewhere:  # a library that is loaded needs its file no more
            _build(Path(elsewhere, path.name))
            return _open(Path(elsewhere, path.name))


@functools.lru_cache(maxsize=None)
def library():
    """The compiled kernels, built where they were not yet; None where they cannot be, with the reason said once."""
    try:
        return _made()
    except Unbuilt as reason:
        backends.say_once(f"kernel backend 'cpu' composes its products of PyTorch's operators: {reason}")
        return None


def described():
    """The compiler, by its own name, where the compiled kernels are there; else None."""
    return _run(*compiler(), "--version").splitlines()[0] if library() is not None else None


def plain(tensor):
    """A tensor as the kernels read it: contiguous, whole numbers in 64 bits; None for None."""
    if tensor is None:
        return None
    return (tensor if tensor.is_floating_point() else tensor.long()).contiguous()


def _structure(name, letters):
    fields = [(field, _LETTERS[letter]) for field, letter in letters.items()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_AFTER = dict(scale="p", shift="p", sample="p", activation="n", slope="f", target="p", positions="p", second="p")
After = _structure("After", _AFTER)  # `AfterOf` of vectors.h
Task = _structure(  # `TaskOf` of product.h, whose `after` lies between `raw` and `partial`, and whose two `sample` differ
    "Task",
    dict(
        source="p", index="p", count="n", taps="n", channels="n", panels="p", outputs="n", bias="p", vector="p", picks="p",
        residual="p", residual_rows="p", zeros="p", raw="p", **_AFTER, partial="p",
    ),
)  # fmt: skip


class Prefilled:
    """A structure for calls with arguments alike: the numbers in it as given, its pointers to the tensors among the arguments, which
    stand at ``places`` (field -> place). ``args``: those of one call; what is None there always is."""

    def __init__(self, structure, places, args, **numbers):
        self._structure, self._made = structure, structure(**numbers)
        self._fields = [
            (name, place, not args[place].is_floating_point() and args[place].dtype != torch.int64)
            for name, place in places.items()
            if args[place] is not None
        ]

    def fill(self, args):
        """(the structure for one call, what had to be copied and must live as long as that)."""
        made, copied = self._structure.from_buffer_copy(self._made), []  # its own: another call may run meanwhile
        for name, place, narrow in self._fields:
            tensor = args[place]
            if narrow or not tensor.is_contiguous():
                copied.append(tensor := plain(tensor))
            setattr(made, name, tensor.data_ptr())
        return made, copied


def address(tensor):
    """Where a tensor's numbers begin, for a call; None for None."""
    return None if tensor is None else tensor.data_ptr()
