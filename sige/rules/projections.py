"""Which outputs of a linear layer keys or values are: all of them, or a part where one layer makes queries, keys and values at once."""

from torch.utils.weak import WeakTensorKeyDictionary

_parts = WeakTensorKeyDictionary()  # weight -> (where it lies, {part: its rows, None for all of them})


def part_of(rows, made, weight, bias):
    """The layer's weight and bias cut to the outputs that ``rows`` are, in the order of their features.

    rows: (n, features...).   made: what the layer gave, (n, O).   weight: (O, C).   bias: (O,) or None.
    Returns (weight (O', C), bias (O',) or None), or None when the rows are not, row by row, outputs of that layer where they lie.
    """
    first, sizes, strides = rows.storage_offset() - made.storage_offset(), rows.shape[1:], rows.stride()[1:]
    last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides))
    alike = len(rows) == len(made) and (len(rows) < 2 or rows.stride(0) == made.stride(0))
    if not alike or made.dim() != 2 or made.stride(1) != 1 or first < 0 or last >= made.shape[1]:
        return None
    return _cut(weight, first, sizes, strides), None if bias is None else _cut(bias, first, sizes, strides)


def _cut(weight, first, sizes, strides):
    """The chosen rows of a weight: itself where they are all of them in order. A part where it lies is the same view every time, of
    which a kernel may keep a rearranged copy; rows that do not lie side by side are copied each time, because a weight may change."""
    state, part = (weight.data_ptr(), weight.dtype, weight.stride()), (first, *sizes, *strides)
    if _parts.get(weight, (None,))[0] != state:
        _parts[weight] = (state, {})
    known = _parts[weight][1]
    if part in known:
        return weight if known[part] is None else known[part]
    step, *rest = weight.stride()
    chosen = (
        weight.detach()
        .as_strided(
            (*sizes, *weight.shape[1:]),
            (*(stride * step for stride in strides), *rest),
            weight.storage_offset() + first * step,
        )
        .reshape(-1, *weight.shape[1:])
    )
    if chosen.untyped_storage()._cdata == weight.untyped_storage()._cdata:
        whole = (chosen.shape, chosen.stride(), first) == (weight.shape, weight.stride(), 0)
        known[part] = None if whole else chosen
        return weight if whole else chosen
    return chosen
