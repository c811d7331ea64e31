"""What is made of a tensor once for each of its states, such as a weight rearranged for a kernel, and let go with it."""

from torch.utils.weak import WeakTensorKeyDictionary


def state(tensor):
    """Changes with a tensor: in place (version), by ``tensor.data = ...`` or ``module.to(dtype)`` (no new version)."""
    return None if tensor.is_inference() else tensor._version, tensor.dtype, tensor.data_ptr()


class Kept:
    """Things made of tensors, one a tensor and ``key``."""

    def __init__(self):
        self._held = WeakTensorKeyDictionary()

    def of(self, tensor, make, *settings, key=None, others=()):
        """``make()``, or what that gave before, as long as neither ``tensor`` nor ``others`` (None are left out) changed since, nor
        ``settings``, which it depends on too."""
        given = [tensor, *(other for other in others if other is not None)]
        signature = (*map(state, given), *settings)
        held = self._held.setdefault(tensor, {})
        found = held.get(key)
        if found is None or found[0] != signature:
            # The storages are held too: as long as they live, no other tensor can have their addresses.
            found = held[key] = signature, make(), [each.untyped_storage() for each in given]
        return found[1]

    def items(self):
        """(tensor, what was made of it) pairs, over all live tensors."""
        return [(tensor, made) for tensor, held in self._held.items() for _, made, _ in held.values()]
