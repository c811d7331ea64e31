"""A convolution's weight as the matrix that the kernels read: (O, taps*channels), taps major, each row contiguous."""

from torch.utils.weak import WeakTensorKeyDictionary

_matrices = WeakTensorKeyDictionary()


def state(tensor):
    """Changes with a tensor: in place (version), by ``tensor.data = ...`` or ``module.to(dtype)`` (no new version)."""
    return None if tensor.is_inference() else tensor._version, tensor.dtype, tensor.data_ptr()


def packed_bytes():
    """Bytes held by rearranged copies of weights, over all live weights."""
    return sum(weight.nbytes for weight in _matrices)


def matrix(weight):
    """Weight (O, C, kh, kw) as (O, kh*kw*C). A view where its memory is arranged so (1x1, channels-last), else a copy made once
    for each state of the weight."""
    arranged = weight.detach().permute(0, 2, 3, 1)
    return arranged.view(weight.shape[0], -1) if arranged.is_contiguous() else _copy(weight)


def _copy(weight):
    found = _matrices.get(weight)
    now = state(weight)
    if found is None or found[0] != now:
        # The storage is held too: as long as it lives, no other can have its address.
        rows = weight.detach().permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
        found = (now, rows, weight.untyped_storage())
        _matrices[weight] = found
    return found[1]
