"""Which U-Net calls a run makes in which of its parts, and how long each part takes."""

import contextlib
import time

from sige.runs.editing.task import Call


class Meter:
    """Listens to a pipeline's U-Net inside its ``with`` block.

    with Meter(pipe) as meter:
        with meter.part("invert"): ...
    meter.calls, meter.seconds          # {"invert": [Call(1, 96, 96), ...]}, {"invert": 1.2}
    """

    def __init__(self, pipe):
        self.unet = pipe.unet
        self.calls, self.seconds = {}, {}
        self._part = "edit"

    def __enter__(self):
        self._hook = self.unet.register_forward_pre_hook(self._heard, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self._hook.remove()

    def _heard(self, module, args, kwargs):
        sample = args[0] if args else kwargs["sample"]
        self.calls.setdefault(self._part, []).append(Call(sample.shape[0], *sample.shape[2:]))

    @contextlib.contextmanager
    def part(self, name):
        """What runs inside the block belongs to the part ``name``; a part may be entered more than once."""
        before, self._part = self._part, name
        self.calls.setdefault(name, [])
        _wait(self.unet)
        start = time.perf_counter()
        try:
            yield
        finally:
            _wait(self.unet)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._part = before


def _wait(unet):
    """Until the device has finished."""
    import torch

    device = next(unet.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
