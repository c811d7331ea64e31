"""Families of active sets: which of a policy's sets are one and the same, whatever the mask, and which lie inside another.

A recording and the edits of it must agree on this before a mask is known: it decides what is remembered.
"""

import math


def set_kind(policy, window):
    """Family of the active set with which a convolution's output is computed: see ``ActiveSet.kind``."""
    if policy.geometry == "level":
        return "level"
    if policy.geometry == "tile":
        return "level" if window.stride == (1, 1) and window.scale == 1 else ("tile", window.stride, window.scale)
    if window.canonical:
        return "level"
    return ("inner", policy.block) if window.pointwise else window


def token_kind(policy):
    """Family of the set that token sequences are kept at."""
    if policy.token_block is None:
        return "level"
    if policy.geometry == "level":
        return ("tokens", policy.token_block)
    same = all(side % policy.token_block == 0 for shape in policy.block_shapes() for side in shape)
    return ("inner", policy.token_block) if same else ("tokens", policy.token_block)


def halvings(base, height, width):
    """How many times a level (height, width) is half of ``base`` (H, W), the resolution of the mask."""
    return round(math.log2(max(base[0] / height, base[1] / width)))


def tile_side(policy, base, height, width):
    """Side of the squares over which a level's norm statistics are summed: the policy's block where it divides the level.

    1 where a level's tiles are no squares, or not known before there is a mask.
    """
    if policy.block == "adaptive":
        return 1
    rows, columns = policy.block_at(halvings(base, height, width))
    if policy.geometry == "level":
        return math.gcd(rows, height, width)
    return 1 if rows != columns or height % rows or width % rows else rows
