"""A whole map through group norm and activation, for the backends that are made of PyTorch's operators."""

import torch
import torch.nn.functional as F

from sige.kernels.activations import applied, apply_


def normalize_map(image, groups, weight, bias, eps, activation, slope):
    if not groups:
        out = image.clone() if activation == "none" else applied(image, activation, slope)
        return out.contiguous(memory_format=torch.channels_last)
    # Channels-last, PyTorch sums squares in float32: too few digits for single channels, which vary by little.
    if groups == image.shape[1]:
        image = image.contiguous()
    out = F.group_norm(image, groups, weight, bias, eps)
    return apply_(out.contiguous(memory_format=torch.channels_last), activation, slope)
