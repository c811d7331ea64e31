"""``ActiveTensor``: looks like the full map, holds only the rows of the active positions.

``axes`` says what each logical dimension is: ``b`` the batch, ``h`` and ``w`` the map's sides, ``p`` both fused, ``f`` a
feature dimension. The tensor ``rows`` has shape (n, features...), features in the order in which they appear in ``axes``.
"""

import torch

from sige.errors import ModelError


class ActiveTensor(torch.Tensor):
    """A map of which only ``rows`` at the positions of ``active`` are present.

    source: the remembered full map (B*H*W, C) that already holds these rows, where there is one.
    scale: nearest up-sampling not carried out yet (the logical H and W are ``scale`` times those of ``active``).
    pad: zero padding not carried out yet, (left, right, top, bottom) in logical positions.
    place: where it stands among the views of one map, see ``sige.views``; None when it has none.
    lost: why ``rows`` are gone, where the model wrote in place to another view of the map.
    """

    place, lost = None, None

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, rows, active, axes, source=None, scale=1, pad=(0, 0, 0, 0)):
        shape = logical_shape(rows, active, axes, scale, pad)
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=rows.dtype, device=rows.device)
        self.rows, self.active, self.axes = rows, active, axes
        self.source, self.scale, self.pad = source, scale, pad
        return self

    def __getattr__(self, name):
        if name == "rows":  # taken away by a write to another view
            raise ModelError(self.lost)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def settled(self):
        """Whether no up-sampling or padding is outstanding."""
        return self.scale == 1 and self.pad == (0, 0, 0, 0)

    def with_rows(self, rows):
        """The same positions and axes with other ``rows`` (n, features...)."""
        return ActiveTensor(rows, self.active, self.axes, None, self.scale, self.pad)

    def __repr__(self):
        return f"ActiveTensor({tuple(self.shape)}, {self.active.count} active rows, axes={''.join(self.axes)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(
            f"{func} met an active tensor outside the session's forward: active tensors live only inside the model's own "
            "forward pass; hooks that keep one for later must copy what they need"
        )


def logical_shape(rows, active, axes, scale=1, pad=(0, 0, 0, 0)):
    """The shape that the full map would have."""
    features = iter(rows.shape[1:])
    sizes = {
        "b": active.batch,
        "h": active.height * scale + pad[2] + pad[3],
        "w": active.width * scale + pad[0] + pad[1],
        "p": active.height * active.width,
    }
    return tuple(next(features) if axis == "f" else sizes[axis] for axis in axes)


def full_view(full, active, axes):
    """View a full map ``full`` (B*H*W, features...) as the logical tensor with ``axes``. No copy."""
    places = ("p",) if "p" in axes else ("h", "w")
    sides = {"b": active.batch, "p": active.height * active.width, "h": active.height, "w": active.width}
    order = ["b", *places] + ["f"] * (full.dim() - 1)
    view = full.view(*(sides[name] for name in ("b", *places)), *full.shape[1:])
    taken = [False] * len(order)
    permutation = []
    for axis in axes:
        place = next(i for i, name in enumerate(order) if name == axis and not taken[i])
        taken[place] = True
        permutation.append(place)
    return view.permute(permutation)


def full_rows(plain, axes):
    """A plain tensor with ``axes`` as a matrix of all its positions (B*H*W, features...). Copies unless channels-last."""
    order = [axes.index("b")]
    order += [axes.index("p")] if "p" in axes else [axes.index("h"), axes.index("w")]
    order += [i for i, axis in enumerate(axes) if axis == "f"]
    moved = plain.permute(order)
    features = [plain.shape[i] for i, axis in enumerate(axes) if axis == "f"]
    return moved.reshape(-1, *features)


def rows_at(plain, axes, active):
    """Rows (n, features...) of a plain tensor at the positions of ``active``, without copying the rest."""
    if active.full:
        return full_rows(plain, axes)
    if axes == ("b", "f", "h", "w"):
        return rows_of_map(plain, active.positions)
    return full_rows(plain, axes).index_select(0, active.positions)


def rows_of_map(plain, index):
    """Rows (n, C) of a plain map (B, C, H, W) at flat row numbers ``index``, without copying the rest."""
    batch, _, height, width = plain.shape
    area, step = height * width, plain.stride(3)
    if plain.stride(2) == width * step and (batch == 1 or plain.stride(0) == area * step):
        return plain.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, index)
    return plain.flatten(2).permute(0, 2, 1)[index // area, index % area]
