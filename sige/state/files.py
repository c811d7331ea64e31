"""One file of tensors in the safetensors format: written piece by piece, mapped into memory when read.

The format: 8 bytes with the header's length n, n bytes of JSON that name each tensor's dtype, shape and place, then the data.
Written here so that nothing is copied first, that a full disk shows as such, and that a file can be mapped for writing too.
"""

import ctypes
import hashlib
import json
import mmap
import os
import struct

import torch

from sige.errors import StorageError

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_PIECE = 8 << 20  # bytes that are written at a time


def write_tensors(path, tensors, note="", sync=True):
    """Write ``tensors`` {name: tensor} and the text ``note`` to a new file. Returns (bytes, SHA-256 of the file).

    sync: wait until the disk has it. StorageError when the disk is full or the file cannot be written; what was written of it
    is removed.
    """
    try:
        with open(path, "xb") as file:
            digest, size = hashlib.sha256(), 0
            for piece in _pieces(tensors, note):
                _write(file, piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"{path} could not be written ({error.strerror or error}): free some disk space or choose another folder"
        ) from error
    return size, digest.hexdigest()


def _write(file, piece):
    file.write(piece)


def _pieces(tensors, note):
    """The bytes of a file, header first. Wider types come first, so that every tensor is aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, start = {"__metadata__": {"note": note}}, 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES:
            raise StorageError(
                f"a tensor of {tensor.dtype} cannot be stored: its dtype is not one of the file format's"
            )
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # data begin at a multiple of 64
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for begin in range(0, len(flat), _PIECE):
            yield memoryview(flat[begin : begin + _PIECE].cpu().numpy())


def map_tensors(path, write=False):
    """Open a file of :func:`write_tensors`: ({name: tensor}, note). The tensors are the file, mapped into memory.

    write: what is written to them goes to the file; otherwise it stays in memory. StorageError naming the file when it is
    missing, truncated, or no such file at all.
    """
    try:
        with open(path, "r+b" if write else "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise StorageError(f"{path} is truncated: it has {size} bytes, not even a header")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY)
    except OSError as error:
        raise StorageError(f"{path} cannot be opened ({error.strerror or error})") from error
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    if begin > size:
        raise StorageError(f"{path} is truncated: it has {size} bytes, its header alone would take {begin}")
    try:
        header = json.loads(data[8:begin])
        note = header.pop("__metadata__", {}).get("note", "")
        stop = begin + max([place["data_offsets"][1] for place in header.values()], default=0)
        if size != stop:
            what = "truncated" if size < stop else "too long"
            raise StorageError(f"{path} is {what}: it has {size} bytes, its header asks for {stop}")
        whole = torch.frombuffer(data, dtype=torch.uint8)
        return {name: _tensor(whole, begin, place) for name, place in header.items()}, note
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} was altered or is no file of tensors: its header cannot be read") from error


def _tensor(whole, begin, place):
    first, last = place["data_offsets"]
    if first == last:
        return torch.empty(place["shape"], dtype=_DTYPES[place["dtype"]])
    return whole[begin + first : begin + last].view(_DTYPES[place["dtype"]]).view(place["shape"])


def forget_cached(path, tensors):
    """Let the system drop what it holds of a mapped file in memory, so that the next read comes from the disk. Linux only."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    page = mmap.PAGESIZE
    for tensor in tensors:
        begin = tensor.data_ptr() // page * page
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - begin), mmap.MADV_DONTNEED)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
