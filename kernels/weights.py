"""A convolution's weight as the matrix that the kernels read: (O, taps*channels), taps major, each row contiguous."""

from sige.kernels.kept import Kept

_matrices = Kept()


def packed_bytes():
    """Bytes held by rearranged copies of weights, over all live weights."""
    return sum(made.nbytes for _, made in _matrices.items())


def matrix(weight):
    """Weight (O, C, kh, kw) as (O, kh*kw*C). A view where its memory is arranged so (1x1, channels-last), else a copy made once
    for each state of the weight."""
    arranged = weight.detach().permute(0, 2, 3, 1)
    if arranged.is_contiguous():
        return arranged.view(weight.shape[0], -1)
    return _matrices.of(weight, lambda: arranged.reshape(weight.shape[0], -1))
