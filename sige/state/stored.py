"""Maps that lie on a tier from which they are not used in place: in host memory beside a GPU, on disk, or packed in 8 bits.

An edit takes the rows that it reads from there into buffers; what it changed goes back only when it is committed.
"""

import dataclasses

import torch

from sige.memory import Entry
from sige.state import files
from sige.state.packed import Packed, as_bytes, pack, unpack


@dataclasses.dataclass
class Stored:
    """One map (N, C) as it is stored.

    data: (N, C) in the stored dtype, in memory or mapped from a file.   scale: of packed maps, else None.
    dtype: of the map in use.   kind: under which its bytes are reported.
    """

    kind: str
    data: torch.Tensor
    scale: torch.Tensor | None
    dtype: torch.dtype

    def tensors(self):
        return (self.data,) if self.scale is None else (self.data, self.scale)

    @property
    def nbytes(self):
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def working_bytes(self):
        """Bytes of the map in use."""
        return self.data.numel() * self.dtype.itemsize

    def rows(self, index=None, device=None):
        """Rows ``index`` (n,) in ``dtype``, or all; on ``device`` if given, widened there."""
        taken = as_bytes(self.data)
        taken = taken if index is None else torch.index_select(taken, 0, index)
        taken = taken if device is None else taken.to(device, non_blocking=True)
        return self.used(taken)

    def used(self, taken):
        """Stored rows, as bytes where they are packed, as they are used."""
        if self.scale is None:
            return taken
        scale = self.scale.to(taken.device, non_blocking=True)
        return unpack(taken.view(self.data.dtype), scale, self.dtype)

    def write(self, index, rows):
        """Replace rows ``index`` (all: None) by ``rows`` (n, C) in the dtype of use."""
        rows = rows.to(self.data.device)
        if self.scale is None:
            self._put(index, rows.to(self.data.dtype))
            return
        packed = pack(rows, self.data.dtype, None if index is None else self.scale)
        if index is not None and not self.data.is_meta and bool(packed.scale > self.scale):
            # The edit's largest value does not fit: the rest of the map takes the wider scale too.
            self.data.copy_(pack(self.rows(), self.data.dtype, packed.scale).data)
        self._put(index, packed.data)
        self.scale.copy_(packed.scale)

    def _put(self, index, rows):
        if index is None:
            self.data.copy_(rows)
        else:
            as_bytes(self.data).index_copy_(0, index.to(self.data.device), as_bytes(rows))

    def entry(self):
        """This map as one that is used where it lies."""
        value = self.data if self.scale is None else Packed(self.data, self.scale, self.dtype)
        return Entry(self.kind, value)


def stored_from(entry):
    """The value of an :class:`~sige.memory.Entry`, where it lies."""
    value = entry.value
    if isinstance(value, Packed):
        return Stored(entry.kind, value.data, value.scale, value.dtype)
    return Stored(entry.kind, value, None, value.dtype)


def move(stored, place):
    """``stored`` {key: Stored} with every tensor put through ``place``; tensors that several have stay one."""
    made = {}

    def once(tensor):
        if tensor is not None and id(tensor) not in made:
            made[id(tensor)] = (place(tensor), tensor)
        return None if tensor is None else made[id(tensor)][0]

    return {key: Stored(one.kind, once(one.data), once(one.scale), one.dtype) for key, one in stored.items()}


def to_disk(stored, path):
    """``stored`` {key: Stored} in a new file at ``path``, mapped into memory. StorageError when the disk is full."""
    if all(one.data.is_meta for one in stored.values()):
        return dict(stored)
    names, tensors = {}, {}
    for one in stored.values():
        for tensor in (one.data, one.scale):
            if tensor is not None and id(tensor) not in names:
                names[id(tensor)] = str(len(names))
                tensors[names[id(tensor)]] = tensor
    files.write_tensors(path, tensors, sync=False)
    mapped, _ = files.map_tensors(path, write=True)
    return move(stored, lambda tensor: mapped[names[id(tensor)]])
