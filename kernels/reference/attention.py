"""Attention, written out. The contract stands in ``sige.kernels.ops``."""

import torch

from sige.kernels.by_token import by_token


def attend(query, key, value, mask, scale):
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    return by_token((torch.softmax(scores, -1) @ value.to(wide)).to(query.dtype))
