"""Metal's kernels on a CPU: their text compiled as C++, run thread by thread over the grid, with sanitizers.

`Shim.library` stands in for ``torch.mps.compile_shader``: same argument, same kind of answer. What it runs was compiled, once, from
the texts that `Shim` was given; a text that differs from all of them in a single byte is an error.
"""

import contextlib
import ctypes
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wdouble-promotion", "-Werror"]
WARNINGS += ["-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-unused-function"]  # what Metal knows and C++ does not
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
NO_COMPILER = (
    "no C++ compiler was found: Metal's kernels are proven on a CPU by compiling them as C++, "
    "so install g++ (12 or newer) or clang++, or name one in CXX"
)
_KERNEL = re.compile(r"^kernel void (\w+)\((.*?)\)\s*\{", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"\s*(.*?)\s*\b(\w+)\s*\[\[(\w+)(?:\((\d+)\))?\]\]\s*")


def compiler():
    """Path of a C++ compiler: ``CXX``, else g++, clang++ or c++. RuntimeError in one sentence where there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    raise RuntimeError(NO_COMPILER)


def kernels(text):
    """{name: [(type, attribute, number or None), ...]} of the kernels in a Metal text, parameters in order."""
    found = {}
    for name, parameters in _KERNEL.findall(text):
        parts = [_PARAMETER.fullmatch(part) for part in re.split(r",(?![^\[]*\]\])", parameters)]
        found[name] = [(part[1], part[3], None if part[4] is None else int(part[4])) for part in parts]
    return found


def _caller(name, parameters):
    """C++ that calls one kernel for one thread."""
    passed = []
    for kind, attribute, number in parameters:
        if attribute == "buffer":
            passed.append(f"({kind})arguments[{number}]")
        elif "position" in attribute:
            passed.append(f"shim::position<{kind}>(lane.{attribute})")
        else:
            passed.append(f"lane.{attribute}")
    return (
        f"static void call_{name}(void** arguments, const shim::Lane& lane)\n{{\n    {name}({', '.join(passed)});\n}}\n"
    )


class Shim:
    """A program with the kernels of some Metal texts. ``folder`` receives its sources and the program."""

    def __init__(self, texts, folder):
        self._numbers = {}
        self._process = None
        self._launches = 0
        self._program = Path(folder) / "worker"
        self._folder = Path(folder)
        parts, table = [], []
        for i, text in enumerate(texts):
            (Path(folder) / f"text{i}.metal").write_text(text, encoding="utf-8")
            macros = re.findall(r"^\s*#define (\w+)", text, re.MULTILINE)
            found = kernels(text)
            parts += [f"namespace text{i} {{", f'#include "text{i}.metal"', *(_caller(*item) for item in found.items())]
            parts += [*(f"#undef {macro}" for macro in macros), "}"]
            for name, parameters in found.items():
                self._numbers[text, name] = len(table), [kind for kind, what, _ in parameters if what == "buffer"]
                table.append(f"text{i}::call_{name}")
        parts.append(f"static const shim::Kernel KERNELS[] = {{{', '.join(table)}}};\n")
        (Path(folder) / "kernels.inc").write_text("\n".join(parts))
        self._compile(Path(folder))

    def _compile(self, folder):
        command = [compiler(), "-std=c++17", "-O1", "-g1", *WARNINGS, *SANITIZERS, f"-I{HERE}", f"-I{folder}"]
        version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
        if "Free Software Foundation" in version:  # GCC guards no variable in a section of its own unless it is told to
            command.append("-fsanitize-sections=threadgroup_memory")
        command += [str(HERE / "worker.cpp"), "-o", str(self._program)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def texts(self):
        """The texts as they were given to the compiler, in bytes."""
        return [path.read_bytes() for path in sorted(self._folder.glob("text*.metal"))]

    def library(self, text):
        """What ``torch.mps.compile_shader(text)`` gives: an object whose attributes are the kernels."""
        names = [name for known, name in self._numbers if known == text]
        assert names, f"a text was launched that was not compiled; it begins {text[:200]!r}"
        return _Library(self, text, names)

    def close(self):
        """End the program."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()
            self._process = None

    def launch(self, text, name, arguments, threads, group):
        """Run a grid. What the program finds wrong is raised as AssertionError with what it said."""
        number, kinds = self._numbers[text, name]
        assert len(arguments) == len(kinds), f"{name} takes {len(kinds)} arguments, not {len(arguments)}"
        assert len(threads) == len(group), "the grid and the group must have as many dimensions"
        buffers, places = [], []
        for argument in arguments:
            buffer, offset = _buffer(argument)
            if buffer not in buffers:
                buffers.append(buffer)
            places.append((buffers.index(buffer), offset))
        grids = [*threads, *[1] * (3 - len(threads)), *group, *[1] * (3 - len(group))]
        self._launches += 1
        message = [struct.pack("<IQ6II", number, self._launches, *grids, len(buffers))]
        for buffer in buffers:
            message += [struct.pack("<Q", buffer.size), buffer.read()]
        message.append(struct.pack("<I", len(places)))
        message += [struct.pack("<IQ", *place) for place in places]
        answer = self._talk(b"".join(message), sum(buffer.size for buffer in buffers))
        written = {place[0] for place, kind in zip(places, kinds) if "const" not in kind}
        for i, buffer in enumerate(buffers):
            if i in written:
                buffer.write(answer[: buffer.size])
            answer = answer[buffer.size :]

    def _talk(self, message, size):
        if self._process is None:
            self._errors = tempfile.TemporaryFile()
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
            self._process = subprocess.Popen([str(self._program)], **pipes)
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
            answer = self._process.stdout.read(size)
        except BrokenPipeError:
            answer = b""
        if len(answer) < size or self._process.poll() is not None:
            self._process.stdout.close()
            self._process.wait()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process = None
            with self._errors as errors:
                errors.seek(0)
                raise AssertionError(errors.read().decode(errors="replace")[:4000])
        return answer


class _Library:
    def __init__(self, shim, text, names):
        for name in names:
            setattr(self, name, _Kernel(shim, text, name))


class _Kernel:
    """Launched as PyTorch's Metal kernels are: arguments in order, ``threads`` and ``group_size`` as lists."""

    def __init__(self, shim, text, name):
        self._where = shim, text, name

    def __call__(self, *arguments, threads, group_size):
        shim, text, name = self._where
        shim.launch(text, name, arguments, threads, group_size)


class _Memory:
    """A tensor's storage: tensors that share it share the buffer."""

    def __init__(self, storage):
        self.size, self._address = storage.nbytes(), storage.data_ptr()

    def __eq__(self, other):
        return isinstance(other, _Memory) and self._address == other._address and self.size == other.size

    def read(self):
        return ctypes.string_at(self._address, self.size)

    def write(self, content):
        ctypes.memmove(self._address, bytes(content), self.size)


class _Bytes:
    """Numbers handed over by value."""

    def __init__(self, content):
        self.size, self._content = len(content), content

    def read(self):
        return self._content


def _buffer(argument):
    """(buffer, offset in bytes) of an argument: a tensor, or a list of ints that Metal sees as ``long``."""
    if isinstance(argument, torch.Tensor):
        assert argument.device.type == "cpu" and argument.numel(), f"a tensor of shape {tuple(argument.shape)}"
        return _Memory(argument.untyped_storage()), argument.storage_offset() * argument.element_size()
    assert all(type(number) is int for number in argument), argument
    return _Bytes(struct.pack(f"<{len(argument)}q", *argument)), 0
