"""Sums over all positions that follow an edit: what its rows gave goes out of those remembered, what they give now comes in."""


def is_whole(active):
    """Whether a set has every position."""
    return active.count == active.batch * active.height * active.width


def followed(forward, key, kind, active, rows, summed):
    """Sums over all positions of the edited map, at the cost of the active ones: a tuple of tensors.

    rows: by name, the (n, features...) that are summed; they are remembered under ``kind``.
    summed: given rows in the same order, the tuple of sums over them, each sample for itself.
    """
    sums = summed(*rows.values())
    old = [forward.exchange_map((key[0], name, key[2]), kind, active, each.flatten(1)) for name, each in rows.items()]
    if not is_whole(active) and all(before is not None for before in old):
        gone = summed(*(before.view_as(now) for before, now in zip(old, rows.values())))
        sums = tuple(kept + new - less for kept, new, less in zip(forward.recall(key), sums, gone))
    forward.keep_value(key, kind, sums)
    return sums
