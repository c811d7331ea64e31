"""From a mask to the list of its active rows, on a CPU, where nothing is lost by knowing their number at once."""

import torch


def compact(mask, capacity):
    active = mask.flatten().nonzero().flatten()
    count = active.numel()
    rows = active if count == capacity else active.new_full((capacity,), -1)
    if count < capacity:
        rows[:count] = active
    return rows, torch.tensor([count], dtype=torch.int32)
