"""Which kernels a method's steps run on, where they are not the run's: what lets two be timed in turn in one run.

Options of a method: ``backend``, another backend of the kernels, and ``boxes``, true for convolutions that read whole tiles as boxes of
the map, see ``sige.kernels.triton.boxes``.
"""

import contextlib

import torch

from sige.kernels import backends
from sige.runs.errors import JobFailure


def check(options: dict) -> None:
    """ValueError for a backend that is not there."""
    if options.get("backend"):
        backends.check(options["backend"])


def need(options: dict, hardware: dict) -> None:
    """JobFailure of status ``skipped`` on hardware that lacks what ``options`` ask for."""
    if not options.get("boxes"):
        return
    copied = hardware["device"] == "cuda" and backends.active("cuda") == "triton"
    if copied:
        from sige.kernels.triton import launch

        copied = launch.copies_boxes(torch.device("cuda"))
    if not copied:
        raise JobFailure(
            "skipped",
            f"boxes need Triton on an NVIDIA GPU of compute capability 9 or 10: not run on hardware {hardware['name']}",
        )


@contextlib.contextmanager
def chosen(options: dict):
    """Inside the ``with`` block the kernels are those of ``options``."""
    with contextlib.ExitStack() as stack:
        if options.get("backend"):
            stack.enter_context(backends.forced(options["backend"]))
        if options.get("boxes"):
            from sige.kernels.triton import boxes

            stack.enter_context(boxes.used())
        yield
