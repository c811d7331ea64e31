"""Stands in for a model's forward while a session records or edits, and knows which of its submodules runs."""

import contextlib

from torch import nn

from sige.errors import RecordingError


class Interception:
    """Routes the forward of ``model`` through a handler, for as long as a block lasts.

    path: stack of module paths, the last that of the module that runs.
    constant: ids of the model's buffers, as they were when the block began.
    """

    def __init__(self, model):
        self.model, self.path, self.constant = model, [""], set()
        self._busy = False

    @contextlib.contextmanager
    def route(self, handler):
        """Inside the block the model's forward is ``handler(original, args, kwargs)``. RecordingError inside another such block."""
        if self._busy:
            raise RecordingError(
                "session.record() and session.edit() cannot be nested: end the one before the other begins"
            )
        model, self._busy = self.model, True
        self.constant = {id(tensor) for tensor in model.buffers()}
        original = model.forward
        self.path[:] = [""]
        undo = _follow_paths(model, self.path)
        undo.append((model, model.__dict__.get("forward")))
        model.__dict__["forward"] = lambda *args, **kwargs: handler(original, args, kwargs)
        try:
            yield
        finally:
            self._busy = False
            for module, own in reversed(undo):
                if own is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = own


# Modules whose whole work is one pointwise operator: nothing is remembered under their path.
_POINTWISE = (nn.SiLU, nn.ReLU, nn.GELU, nn.Dropout, nn.Identity, nn.Sigmoid, nn.Tanh, nn.LeakyReLU)


def _follow_paths(model, path):
    """Wrap the submodules' forwards so that ``path[-1]`` is the path of the module that runs.

    Returns (module, forward it had of its own or None), to put back. Hooks would do the same at ten times the cost a call.
    """
    undo = []
    for name, module in model.named_modules():
        if module is not model and not isinstance(module, _POINTWISE):
            undo.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _tracked(module.forward, name, path)
    return undo


def _tracked(forward, name, path):
    def tracked(*args, **kwargs):
        path.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            path.pop()

    return tracked
