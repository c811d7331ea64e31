"""Conditioning: the tensors of a forward that depend on no map, such as time embeddings and projections of the text.

An edit leaves them as they are unless it declares them changed, so linear layers on them need not run again: their outputs are
remembered, and shared between steps that have the same input.
"""

import torch

from sige.active_tensor import ActiveTensor


class Shared:
    """Outputs of linear layers on conditioning that the steps of one recording, or of one edit, have in common."""

    def __init__(self):
        self._outputs = {}

    def find(self, key, input):
        """The output kept under ``key`` if it was made from this very tensor, unmodified since; else None."""
        kept = self._outputs.get(key)
        if kept is None or kept[0] is not input or kept[1] != _version(input):
            return None
        return kept[2]

    def keep(self, key, input, output):
        """Keep the output made from ``input``."""
        self._outputs[key] = (input, _version(input), output)


class Conditioning:
    """Follows what one forward computes from conditioning inputs, weights and constants alone.

    inputs: the inputs of the call that are not maps, by name.   changed: names that the edit declares changed.
    constant: ids of the model's buffers.   shared: outputs common to the steps.
    """

    def __init__(self, inputs, changed, constant, shared):
        declared = {name for name in inputs if any(name == item or name.startswith(f"{item}.") for item in changed)}
        self._known = {
            id(value): (value, name in declared) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        # A changed number, such as a time step, turns up in tensors that nothing shows to come from it.
        self._doubt = any(not isinstance(inputs[name], torch.Tensor) for name in declared)
        self._constant, self.shared = constant, shared

    def __contains__(self, tensor):
        return id(tensor) in self._known

    def is_changed(self, tensor):
        """Whether a conditioning tensor depends on an input that the edit declared changed."""
        return self._doubt or self._known[id(tensor)][1]

    def follow(self, args, kwargs, out):
        """Note the result of a function when all tensors among its arguments are conditioning, weights or buffers."""
        if isinstance(out, ActiveTensor) or args and isinstance(args[0], ActiveTensor):
            return
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        if out is None and args:  # such as __setitem__: what it wrote to is its first argument
            outputs = args[:1]
        tensors = [part for part in outputs if isinstance(part, torch.Tensor)]
        if not tensors:
            return
        changed = self._changed((*args, *kwargs.values()) if kwargs else args)
        for tensor in tensors:
            known = self._known.get(id(tensor))
            if changed is None:
                if known is not None or id(tensor) in self._constant:
                    self._overwritten(tensor, None)
            elif known is not None and known[1] != changed:
                self._overwritten(tensor, changed)
            elif not isinstance(tensor, torch.nn.Parameter):
                self._known[id(tensor)] = (tensor, changed)

    def _overwritten(self, tensor, changed):
        """Conditioning that was written to in place, views included: dropped where a map was written (``changed`` None)."""
        storage = tensor.untyped_storage()._cdata
        for place, (other, _) in list(self._known.items()):
            if other.untyped_storage()._cdata == storage:
                if changed is None:
                    del self._known[place]
                else:
                    self._known[place] = (other, changed)
        if changed is None:
            self._constant = self._constant - {id(tensor), id(tensor._base)}

    def _changed(self, values):
        """Whether any of the values depends on a changed input; None when one of them depends on a map."""
        changed = False
        for value in values:
            if isinstance(value, torch.Tensor):
                known = self._known.get(id(value))
                if known is not None:
                    changed = changed or known[1]
                elif not isinstance(value, torch.nn.Parameter) and id(value) not in self._constant:
                    return None
            elif isinstance(value, (tuple, list)):
                inner = self._changed(value)
                if inner is None:
                    return None
                changed = changed or inner
        return changed


def _version(tensor):
    return None if tensor.is_inference() else tensor._version
