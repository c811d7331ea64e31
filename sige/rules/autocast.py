"""Autocast, as PyTorch's own dispatcher would apply it to the operators that the rules run themselves."""

import torch

from sige.active_tensor import ActiveTensor


def cast(*tensors):
    """The tensors in autocast's dtype when autocast is on for their device; unchanged otherwise."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(_to(tensor, dtype) for tensor in tensors)


def _to(tensor, dtype):
    if tensor is None or tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    return tensor.with_rows(tensor.rows.to(dtype)) if isinstance(tensor, ActiveTensor) else tensor.to(dtype)
