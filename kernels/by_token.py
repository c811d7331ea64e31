"""How attention's result lies in memory: token after token, on every backend and for every length.

PyTorch's kernels choose a layout by lengths and strides, while a compiler must know it beforehand, and so must a replayed step, whose
views were made for the layout that was traced. It is the layout that a model puts heads together in.
"""


def by_token(x):
    """``x`` (B, heads, n, d) with the heads of a token side by side. Copies only where they are not."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
