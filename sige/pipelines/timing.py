"""Seconds of a pipeline run by part, without stopping a GPU's queue while it runs."""

import contextlib
import time

import torch


class Clock:
    """Adds up the seconds of named parts; parts may lie inside ``total``.

    On CUDA events are written into the stream and read at the end, so nothing waits for them during the run.
    """

    def __init__(self, device):
        self._cuda = device.type == "cuda"
        self._spans = []

    @contextlib.contextmanager
    def part(self, name):
        """Time the block as a part of this name."""
        start = self._now()
        try:
            yield
        finally:
            self._spans.append((name, start, self._now()))

    @contextlib.contextmanager
    def calls(self, name, module):
        """Time every call of ``module`` inside the block as a part of this name."""
        begun = []
        handles = [
            module.register_forward_pre_hook(lambda *_: begun.append(self._now())),
            module.register_forward_hook(lambda *_: self._spans.append((name, begun.pop(), self._now()))),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seconds(self):
        """Seconds by part."""
        if self._cuda:
            torch.cuda.synchronize()
        total = {}
        for name, start, stop in self._spans:
            took = start.elapsed_time(stop) / 1000 if self._cuda else stop - start
            total[name] = total.get(name, 0.0) + took
        return total

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def watch(stack, model, vae):
    """A Clock that times everything until ``stack`` is closed: ``total``, calls of the U-Net and of the autoencoder's halves."""
    clock = Clock(next(model.parameters()).device)
    stack.enter_context(clock.part("total"))
    stack.enter_context(clock.calls("unet", model))
    if vae is not None:
        stack.enter_context(clock.calls("encode", vae.encoder))
        stack.enter_context(clock.calls("decode", vae.decoder))
    return clock
