"""From a mask to the list of its active rows, as plainly as it can be said. The contract stands in ``sige.kernels.ops``."""

import torch


def compact(mask, capacity):
    active = torch.arange(mask.numel(), device=mask.device)[mask.flatten()]
    rows = torch.full((capacity,), -1, dtype=torch.int64, device=mask.device)
    if len(active) <= capacity:
        rows[: len(active)] = active
    return rows, torch.tensor([len(active)], dtype=torch.int32, device=mask.device)
