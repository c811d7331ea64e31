"""Attention on an Apple GPU: PyTorch's own fused kernels, which split the keys among blocks where queries are few."""

import torch.nn.functional as F


def attend(query, key, value, mask, scale):
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
