"""A stand-in for the capture of CUDA graphs that needs no GPU: operators are noted with the very tensors that they read and write.

Like a graph, it does nothing while it captures, and a replay runs the same operators on the same addresses, whatever tensors the
caller holds by then.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Noting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for declared, value in zip(func._schema.arguments, args):
            if declared.alias_info is not None and declared.alias_info.is_write:
                self._remember(value)
        out = func(*args, **kwargs)
        results = [
            part for part in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(part, torch.Tensor)
        ]
        self.made |= {
            part.untyped_storage()._cdata for part in results if not func.is_view and not func._schema.is_mutable
        }
        self.calls.append((func, args, kwargs, results))
        return out

    def _remember(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.made and storage._cdata not in self.before:
            whole = torch.empty(0, dtype=torch.uint8).set_(getattr(tensor, "held", tensor).untyped_storage())
            self.before[storage._cdata] = whole, whole.clone()

    def undo(self):
        for whole, old in self.before.values():
            whole.copy_(old)

    def replay(self):
        for func, args, kwargs, results in self.calls:
            if func.is_view:
                continue
            out = func(*args, **kwargs)
            given = [
                part for part in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(part, torch.Tensor)
            ]
            for own, new in zip(results, given, strict=True):
                if own.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    own.copy_(new)


class Capture:
    """``capture(run)`` as `sige.replay.graphs.cuda_capture` gives it. ``count``: captures so far."""

    def __init__(self):
        self.count = 0

    def __call__(self, run):
        noting = _Noting()
        try:
            with noting:
                result = run()
        finally:
            noting.undo()
        for own in noting.calls:  # what a capture leaves in its own memory means nothing
            for part in own[3]:
                if part.untyped_storage()._cdata in noting.made and part.is_floating_point() and part.numel():
                    part.fill_(float("nan"))
        self.count += 1
        return result, noting.replay
