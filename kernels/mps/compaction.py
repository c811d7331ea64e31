"""From a mask to the list of its active rows, on an Apple GPU: a running sum gives each its place, so the host waits for nothing."""

import torch


def compact(mask, capacity):
    on = mask.flatten()
    rank = on.cumsum(0, dtype=torch.int32)
    count = rank[-1:] if len(rank) else rank.new_zeros(1)
    # Positions that are not listed are written behind the list's end.
    place = torch.where(on & (count <= capacity), rank - 1, capacity)
    rows = torch.full((capacity + 1,), -1, dtype=torch.int64, device=mask.device)
    rows.scatter_(0, place.long(), torch.arange(len(on), device=mask.device))
    return rows[:capacity].clone(), count.clone()
