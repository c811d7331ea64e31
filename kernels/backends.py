"""Which backend serves which device.

A backend is a folder with one module for each operator family; modules bear the same names in every backend. `reference`
is naive and readable and serves as the oracle; `cpu` is fast. ``SIGE_BACKEND=reference`` in the environment, or
``with backends.forced("reference"):``, sends every call there.
"""

import contextlib
import functools
import importlib
import os

BACKENDS = ("reference", "cpu")
FAMILIES = {
    "gather_rows": "gather",
    "scatter_rows_": "gather",
    "conv_rows": "convolution",
    "conv_tiles": "convolution",
    "conv_map": "convolution",
    "linear_rows": "convolution",
    "affine_rows": "normalization",
    "tile_moments": "normalization",
}
_DEVICE_BACKEND = {"cpu": "cpu"}
_forced = None


def check(name):
    """Return ``name`` if it is a backend, else raise ValueError that lists them."""
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return name


def active(device_type="cpu"):
    """The backend that serves ``device_type`` now. Devices without kernels of their own run on `reference`."""
    return check(_forced or os.environ.get("SIGE_BACKEND") or _DEVICE_BACKEND.get(device_type, "reference"))


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


def implementation(operator, device_type):
    """The function that runs ``operator`` on tensors of ``device_type``."""
    return _load(active(device_type), operator)
