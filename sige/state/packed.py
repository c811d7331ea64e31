"""Maps in one byte a value: an 8-bit floating-point dtype, and a scale for the whole map so that nothing overflows.

The scale is a power of two, so that it costs no digit: what is lost is the rounding to three bits of mantissa (e4m3), at most
1/16 of a value and some 2.6 % of it in the mean square. Values below a 2^-9th part of the scale's unit become multiples of it.
"""

import dataclasses

import torch


def is_packed(dtype):
    """Whether maps in ``dtype`` need a scale: 8-bit floating-point dtypes."""
    return dtype.is_floating_point and dtype.itemsize == 1


@dataclasses.dataclass
class Packed:
    """A map: ``data`` (N, C) of an 8-bit dtype times ``scale``, a tensor of no dimension; ``dtype`` is what it was."""

    data: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    def tensors(self):
        return self.data, self.scale

    def unpacked(self):
        """The whole map (N, C) in ``dtype``."""
        return unpack(self.data, self.scale, self.dtype)


def pack(rows, dtype, least=None):
    """``rows`` (N, C) as a :class:`Packed` map. least: a scale that must not be undercut."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    largest = rows.abs().amax().to(wide) if rows.numel() else rows.new_zeros((), dtype=wide)
    # The exponent of largest / max, rounded up: a value at the limit must stay below it.
    mantissa, exponent = torch.frexp(largest / torch.finfo(dtype).max)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    scale = torch.where(largest > 0, scale, torch.ones_like(scale))
    if least is not None:
        scale = torch.maximum(scale, least.to(scale.device))
    return Packed((rows.to(wide) / scale).to(dtype), scale, rows.dtype)


def unpack(data, scale, dtype):
    """Rows of a packed map in ``dtype``."""
    if dtype == torch.float16:  # has no room for small scales
        return data.to(scale.dtype).mul_(scale).to(dtype)
    return data.to(dtype).mul_(scale.to(dtype))


def as_bytes(data):
    """``data`` in a dtype whose rows can be indexed on every device: an 8-bit floating-point one as uint8."""
    return data.view(torch.uint8) if is_packed(data.dtype) else data
