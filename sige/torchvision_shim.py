"""Makes torchvision importable where its compiled library does not fit the installed torch.

A torchvision built for CUDA beside a CPU build of torch cannot load its library ``_C``. It swallows that error, and
then fails on ``operator torchvision::nms does not exist`` when it attaches fake kernels to two operators that nobody
declared.
Everything built on it (diffusers models, timm, open_clip, lpips, torchmetrics) fails with it, although hardly any of
them needs a compiled operator. Declaring the two schemas is enough. Where the library loads, nothing is declared.

The declared operators have no kernel: ``torchvision.ops.nms`` still raises, in words of torch, when it is called.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []  # a torch.library.Library takes its schemas with it when it is collected


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Prepares the operators when torchvision is first asked for, then is out of the way."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.origin is not None:
            _declare_missing(Path(spec.origin).parent)
        return spec


def _declare_missing(folder):
    """Load the compiled library in ``folder`` and declare those of the two operators that it did not bring."""
    import torch

    for library in sorted(folder.glob("_C*")):
        if library.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue  # the case this module is for: linked against a torch that is not the installed one
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(name + _SIGNATURE)
        _declared.append(library)


def install():
    """Put the hook in place, once. It must be there before anything imports torchvision; later it is of no use."""
    if "torchvision" in sys.modules or any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())
