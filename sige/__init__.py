"""Incremental image models: recompute what an edit touched, and nothing else.

    session = sige.Session(model, policy="incremental")
    with session.record():
        before = model(x0, t).sample
    with session.edit(mask) as effect:
        after = model(x1, t).sample

``import sige`` loads nothing but this file; torch and the rest come with the first use of a name. In a checkout the
folders ``kernels``, ``datasets``, ``analysis`` and ``runs`` stand beside this one and are imported as ``sige.kernels``
and so on; in a wheel they lie inside it. They have no ``__init__.py`` at their top, so that they never shadow the
packages of other projects that bear the same names.
"""

import importlib

from sige import torchvision_shim
from sige.paths import project_root

__version__ = "0.1.0"
__all__ = ["POLICIES", "Policy", "Session", "SigeError", "policy"]

_EXPORTS = {
    "POLICIES": "sige.policies",
    "Policy": "sige.policies",
    "Session": "sige.session",
    "SigeError": "sige.errors",
    "policy": "sige.policies",
}
_MODULES = ("errors", "macs", "masks", "paths")

if project_root() is not None:
    __path__.append(str(project_root()))

torchvision_shim.install()


def __getattr__(name):
    """Fetch a public name, or one of the public modules, on first use."""
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"sige.{name}")
    raise AttributeError(f"module 'sige' has no attribute {name!r}: it offers {', '.join([*__all__, *_MODULES])}")


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})
