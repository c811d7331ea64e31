"""Which backend serves which device.

A backend is a folder with one module for each operator family; modules bear the same names in every backend. `reference` is
naive and readable and serves as the oracle, on any device; `cpu` has compiled products, and `composed` behind them, which makes
the most of PyTorch's own operators; `triton` serves NVIDIA GPUs, `mps` those of Apple.
``SIGE_BACKEND=reference`` in the environment, or ``with backends.forced("reference"):``, sends every call there.

A backend that cannot serve a call raises `Declined` with the reason, before it has written anything: the reason is logged once and
`reference` serves the call. A backend that is not there at all (its package is not installed) is left out the same way
where it would be the device's own, and is an error where it was asked for.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os

import torch

BACKENDS = ("reference", "composed", "cpu", "triton", "mps")
FAMILIES = {
    "gather_rows": "gather",
    "scatter_rows_": "gather",
    "exchange_rows_": "gather",
    "conv_rows": "convolution",
    "conv_tiles": "convolution",
    "conv_map": "convolution",
    "linear_rows": "convolution",
    "affine_rows": "normalization",
    "update_statistics_": "normalization",
    "activate_rows": "fused",
    "conv_rows_fused": "fused",
    "normalize_rows_": "normalized",
    "normalize_map": "fused",
    "conv_map_fused": "fused",
    "project_rows_": "projection",
    "attend": "attention",
    "compact": "compaction",
}
_DEVICE_BACKEND = {"cpu": "cpu", "cuda": "triton", "mps": "mps"}
_PACKAGE = {"triton": "triton"}  # what a backend imports besides torch
_EXACT = ("reference", "composed", "cpu")  # decline nothing: their functions are called as they are
_PREPARING = ("cpu",)  # have a module ``prepared``
_logger = logging.getLogger(__name__)
_forced = None


class Declined(Exception):
    """Raised by a backend that cannot serve a call; the message is one sentence that says why."""


def check(name):
    """Return ``name`` if it is a backend, else raise ValueError that lists them."""
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return name


@functools.lru_cache(maxsize=None)
def missing(name):
    """Why backend ``name`` cannot be loaded here, in a few words; None where it can. Imports none of its modules."""
    if name == "mps" and not torch.backends.mps.is_available():
        return "PyTorch finds no Apple GPU"
    package = _PACKAGE.get(name)
    if package and importlib.util.find_spec(package) is None:
        return f"the package {package!r} is not installed"
    return None


def available():
    """The backends that can be loaded here, in the order of `BACKENDS`."""
    return tuple(name for name in BACKENDS if not missing(name))


def usual(device_type):
    """The backend made for a device, whether or not it can be loaded here; `reference` for devices that have none."""
    return _DEVICE_BACKEND.get(device_type, "reference")


def _refusal(name, device_type):
    """Why tensors on ``device_type`` cannot go to backend ``name``, and what would be right; None where they can."""
    if missing(name):
        remedy = "install it" if name in _PACKAGE else "choose another"
        return f"kernel backend {name!r} was asked for, but {missing(name)}: {remedy} or unset SIGE_BACKEND"
    if name == "triton" and device_type == "cpu" and not interpreting():
        return (
            "kernel backend 'triton' serves CPU tensors only in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before Python starts, or unset SIGE_BACKEND"
        )
    interpreted = name == "triton" and device_type == "cpu"
    serves = (
        name == "reference" or name == _DEVICE_BACKEND.get(device_type) or (name, device_type) == ("composed", "cpu")
    )
    if not serves and not interpreted:
        return f"kernel backend {name!r} cannot serve {device_type} tensors: choose 'reference' or unset SIGE_BACKEND"
    return None


def interpreting():
    """Whether the environment asks for Triton's interpreter, which runs kernels on the CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.lru_cache(maxsize=None)
def _own(device_type):
    """The device's own backend, or `reference` with the reason logged once. Devices without kernels run on `reference`."""
    name = usual(device_type)
    if missing(name):
        _logger.warning(
            "%s tensors run on the kernel backend 'reference', not %r: %s", device_type, name, missing(name)
        )
        return "reference"
    return name


def active(device_type="cpu"):
    """The backend that serves ``device_type`` now: the forced one, else the environment's, else the device's own.

    Raises ValueError for a name that is no backend and RuntimeError for one that was asked for and cannot serve the device.
    """
    name = _forced or os.environ.get("SIGE_BACKEND")
    if not name:
        return _own(device_type)
    refusal = _refusal(check(name), device_type)
    if refusal:
        raise RuntimeError(refusal)
    return name


def gathers(device_type):
    """Whether products on a device multiply taps that were gathered in memory, fewer of them for whole tiles than for as many single
    positions; else each row is read where it lies, and tiles save nothing. The meta device stands for a CPU with compiled kernels."""
    if device_type == "meta":
        return False
    name = active(device_type)
    if name == "cpu":
        from sige.kernels.cpu.library import library  # which reports here what it lacks

        return library() is None
    return name in ("reference", "composed")


def merges(device_type):
    """Whether each launch on a device costs time of its own, so that operators are worth merging that save nothing else."""
    return device_type != "meta" and active(device_type) == "triton"


def widest(device_type):
    """The widest numbers that ``device_type``'s kernels compute with: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device_type == "mps" or active(device_type) == "mps" else torch.float64


@contextlib.contextmanager
def forced(name):
    """Send every operator to backend ``name`` inside the ``with`` block."""
    global _forced
    before, _forced = _forced, check(name)
    try:
        yield
    finally:
        _forced = before


@functools.lru_cache(maxsize=None)
def _load(backend, operator):
    return getattr(importlib.import_module(f"sige.kernels.{backend}.{FAMILIES[operator]}"), operator)


_declined = []  # what was said


def say_once(sentence):
    """Log what a backend leaves to another, and why; the second time, nothing."""
    if sentence not in _declined:
        _declined.append(sentence)
        _logger.warning("%s", sentence)


def declined():
    """What this process's backends left to others so far, a sentence with the reason each; () where they served every call."""
    return tuple(_declined)


@functools.lru_cache(maxsize=None)
def _backed(backend, operator):
    """A backend's function, with `reference` behind it for the calls that it declines."""
    serve, otherwise = _load(backend, operator), _load("reference", operator)

    def call(*args):
        try:
            return serve(*args)
        except Declined as reason:
            say_once(f"kernel backend {backend!r} leaves {operator} to 'reference': {reason}")
        return otherwise(*args)

    return call


def implementation(operator, device_type):
    """The function that runs ``operator`` on tensors of ``device_type``."""
    backend = active(device_type)
    return _load(backend, operator) if backend in _EXACT else _backed(backend, operator)


def prepared(operator, device_type):
    """`implementation` for one place that calls ``operator`` again and again, with tensors of the same shapes and dtypes each time and
    the same numbers: a backend with a module ``prepared`` works out once what follows from them."""
    backend = active(device_type)
    if backend in _PREPARING:
        made = importlib.import_module(f"sige.kernels.{backend}.prepared").prepared(operator)
        if made is not None:
            return made
    return implementation(operator, device_type)
