"""Policies: the engine's whole dial board, as one frozen dataclass and a handful of named settings."""

import dataclasses
import fnmatch
import itertools
import math

import torch

from sige.errors import PolicyError

_SIDES = (2, 4, 8, 16, 32)  # of the blocks that FISEdit chooses from
_CHOICES = {
    "geometry": ("window", "tile", "level"),
    "whole_tiles": ("faster", "always", "never"),
    "block_objective": ("measured", "gathered", "multiplications", "printed"),
    "pyramid": ("bilinear", "max"),
    "norm": ("cached", "incremental", "dense"),
    "kv": ("remembered", "reprojected", "active"),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """How an edit is carried out.

    geometry: ``window`` gives each convolution its own active tiles, those whose input window meets the mask (SIGE's way);
        ``tile`` the tiles of its input that hold an edited position, without the window's margin (FISEdit's way);
        ``level`` uses one active set a resolution, nested between resolutions (ours).
    block: side of a tile in positions, at stride 1; a tuple gives one for each halving of the resolution, the last repeats. With
        ``level`` a level whose sides it does not divide has tiles of the largest side that divides all three. With
        ``tile`` each may also be a pair (rows, columns), and ``adaptive`` has the pair searched for, for each mask and level.
    block_choices: the pairs among which ``adaptive`` chooses; None: sides of 2, 4, 8, 16 and 32 positions in every combination.
    block_objective: what ``adaptive`` minimises: ``measured`` time of the level's convolutions, the area ``gathered``, the
        ``multiplications``, or FISEdit's formula as ``printed``, see :mod:`sige.apsc`.
    whole_tiles: whether tiles are convolved whole, as FISEdit does, or one position at a time, which reads more and wastes nothing:
        whichever is ``faster``, ``always`` (where tiles divide the map and the stride is 1) or ``never``.
    token_block: side of the tiles that are kept where a map becomes a sequence of tokens; None: the tokens of the level's own set.
    pyramid: how the mask is brought to a lower resolution: repeated ``bilinear`` halving with ``threshold``, or ``max``.
    threshold: what a bilinear mask value must exceed to count as edited.
    dilation: pixels by which the mask grows at each resolution; a tuple as for ``block``.
    min_resolution: levels whose shorter side is below this run dense.
    upsample_min_source: a convolution behind nearest up-sampling, or a transposed one that enlarges, runs sparse when its source
        side is at least this.
    dense_modules: ``fnmatch`` patterns of module paths that always run dense.
    overhang: with ``window``: tiles that lie beyond the right and bottom edges but whose window meets the mask are computed and
        thrown away, as SIGE's grid does. They cost multiply-accumulates and change nothing.
    norm: statistics of normalisations over space: ``cached`` from the recording, ``incremental`` (the edited map's own, at a
        cost proportional to the edit), ``dense`` (computed from the whole map: the oracle).
    merge_rate: share r of what attention newly computes; r * new + (1 - r) * recorded is what goes on. 1: nothing is remembered
        for it.
    kv: keys and values of self-attention: those of unedited positions ``remembered``; ``reprojected`` from remembered tokens at
        every step, as SIGE and FISEdit do (half the bytes, all positions' products); or only the ``active`` ones. Linear attention
        sums over all positions with the first two, over the active ones with the third.
    text_refresh: the text in a joint sequence of text and image is computed anew in every n-th forward of an edit, from the first
        on, and remembered in the others; 1: always; None: never.
    dense_above: share of active positions above which a level runs dense; None: never.
    bucket: with ``level``: factor (above 1) by which the sizes grow that active sets are filled up to, with the tiles nearest to the
        edit, see :mod:`sige.buckets`: masks of about one size then share what is replayed. None: sets as the mask wants them.
    state_dtype: torch dtype in which feature maps are remembered; None: as computed.
    """

    name: str = "custom"
    geometry: str = "level"
    block: int | tuple[int | tuple[int, int], ...] | str = 4
    block_choices: tuple[tuple[int, int], ...] | None = None
    block_objective: str = "measured"
    whole_tiles: str = "faster"
    token_block: int | None = None
    pyramid: str = "max"
    threshold: float = 0.3
    dilation: int | tuple[int, ...] = 0
    min_resolution: int = 32
    upsample_min_source: int = 0
    dense_modules: tuple[str, ...] = ()
    overhang: bool = False
    norm: str = "incremental"
    kv: str = "remembered"
    merge_rate: float = 1.0
    text_refresh: int | None = 1
    dense_above: float | None = None
    bucket: float | None = None
    state_dtype: torch.dtype | None = None

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise PolicyError(f"policy {field}={value!r} is unknown: choose one of {', '.join(choices)}")
        if not _whole_numbers(self.dilation, 0):
            raise PolicyError(
                f"policy dilation={self.dilation!r} must be a whole number of at least 0, or a tuple of such"
            )
        self._check_block()
        if self.token_block is not None and (not isinstance(self.token_block, int) or self.token_block < 1):
            raise PolicyError(f"policy token_block={self.token_block!r} must be None or a whole number of at least 1")
        if self.text_refresh is not None and (not isinstance(self.text_refresh, int) or self.text_refresh < 1):
            raise PolicyError(f"policy text_refresh={self.text_refresh!r} must be None or a whole number of at least 1")
        if not isinstance(self.merge_rate, (int, float)) or not 0 < self.merge_rate <= 1:
            raise PolicyError(f"policy merge_rate={self.merge_rate!r} must be a share in (0, 1]")
        if self.dense_above is not None and not 0 < self.dense_above <= 1:
            raise PolicyError(f"policy dense_above={self.dense_above!r} must be None or a share in (0, 1]")
        self._check_bucket()
        if self.state_dtype is not None and not self.state_dtype.is_floating_point:
            raise PolicyError(
                f"policy state_dtype={self.state_dtype} must be a floating-point dtype such as torch.bfloat16"
            )

    def _check_bucket(self):
        if self.bucket is None:
            return
        if not isinstance(self.bucket, (int, float)) or not 1 < self.bucket < math.inf:
            raise PolicyError(f"policy bucket={self.bucket!r} must be None or a factor above 1, such as 1.25")
        if self.geometry != "level":
            raise PolicyError(f"policy bucket={self.bucket!r} needs geometry='level', not {self.geometry!r}")

    def _check_block(self):
        if self.block_choices is not None and not _are_pairs(self.block_choices):
            raise PolicyError(
                f"policy block_choices={self.block_choices!r} must be None or a tuple of pairs (rows, columns)"
            )
        if isinstance(self.block, str):
            if self.block != "adaptive":
                raise PolicyError(f"policy block={self.block!r} is unknown: choose a whole number or 'adaptive'")
            if self.geometry != "tile":
                raise PolicyError(f"policy block='adaptive' needs geometry='tile', not {self.geometry!r}")
            return
        pairs = isinstance(self.block, tuple) and any(isinstance(step, tuple) for step in self.block)
        if pairs and self.geometry != "tile":
            raise PolicyError(
                f"policy block={self.block!r} has pairs, which need geometry='tile', not {self.geometry!r}"
            )
        steps = self.block if isinstance(self.block, tuple) else (self.block,)
        if not steps or not all(_whole_numbers(step, 1) and _is_side_or_pair(step) for step in steps):
            also = ", each also a pair (rows, columns)" if self.geometry == "tile" else ""
            raise PolicyError(
                f"policy block={self.block!r} must be a whole number of at least 1, or a tuple of such{also}"
            )

    def at(self, field, halvings):
        """``block`` or ``dilation`` at a level that is ``halvings`` times half the mask's resolution."""
        value = getattr(self, field)
        return value[min(max(halvings, 0), len(value) - 1)] if isinstance(value, tuple) else value

    def block_at(self, halvings):
        """(rows, columns) of a tile at a level that is ``halvings`` times half the mask's resolution."""
        return _as_pair(self.at("block", halvings))

    def block_shapes(self):
        """Every (rows, columns) that tiles may have under this policy, at one level or another; smaller ones first."""
        if self.block == "adaptive":
            return self.block_choices or tuple(sorted(itertools.product(_SIDES, _SIDES), key=_by_area))
        return tuple(_as_pair(step) for step in (self.block if isinstance(self.block, tuple) else (self.block,)))

    def is_dense_module(self, path):
        """Whether module ``path`` matches one of ``dense_modules``."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.dense_modules)

    def is_dense_level(self, height, width):
        """Whether maps of this size run dense by ``min_resolution``."""
        return min(height, width) < self.min_resolution


def _whole_numbers(value, least):
    steps = value if isinstance(value, tuple) else (value,)
    return bool(steps) and all(type(step) is int and step >= least for step in steps)


def _are_pairs(shapes):
    return (
        isinstance(shapes, tuple)
        and bool(shapes)
        and all(_is_pair(shape) and _whole_numbers(shape, 1) for shape in shapes)
    )


def _is_pair(shape):
    return isinstance(shape, tuple) and len(shape) == 2


def _by_area(shape):
    return shape[0] * shape[1], max(shape)


def _is_side_or_pair(step):
    return not isinstance(step, tuple) or _is_pair(step)


def _as_pair(step):
    return step if isinstance(step, tuple) else (step, step)


_ENDS = ("conv_in", "conv_norm_out", "conv_out")

_SIGE = Policy(
    name="sige",
    geometry="window",
    block=4,
    pyramid="bilinear",
    dilation=1,
    min_resolution=64,
    upsample_min_source=64,
    dense_modules=_ENDS,
    overhang=True,
    norm="cached",
)

_INCREMENTAL = Policy(
    name="incremental",
    block=(8, 4, 4, 2, 2),
    dilation=(4, 3, 2, 2, 1),
    min_resolution=16,
    upsample_min_source=8,
    dense_above=0.7,
)

POLICIES = {
    # What the numbers printed in the SIGE paper imply: up-sampling convolutions from 8, 16 and 32 are dense.
    "sige": _SIGE,
    # What SIGE's released configuration does: every up-sampling convolution is sparse.
    "sige_public": dataclasses.replace(_SIGE, name="sige_public", upsample_min_source=0),
    # The paper's dials without tiles: what the tiles cost.
    "pixel": dataclasses.replace(_SIGE, name="pixel", block=1, overhang=False),
    # FISEdit's quality setting: fixed 2x2 tiles without margin on levels of 24 and more (of 96), keys and values of all tokens.
    "fisedit": Policy(
        name="fisedit",
        geometry="tile",
        block=2,
        token_block=1,
        min_resolution=24,
        upsample_min_source=24,
        dense_modules=("mid_block*",),
        norm="cached",
        kv="reprojected",
    ),
    # FISEdit's efficiency setting: every level, attention among the edited tokens alone.
    "fisedit_radical": Policy(
        name="fisedit_radical",
        geometry="tile",
        block=2,
        token_block=1,
        min_resolution=1,
        norm="cached",
        kv="active",
    ),
    # Ours. Block and dilation lie on the measured front of error against MACs on the church U-Net: less error than `sige` at
    # fewer MACs on both public church edits.
    "incremental": _INCREMENTAL,
    # Ours for transformers: tokens overlap nowhere, so that tiles and a wide margin around the edit would only cost.
    "tokens": dataclasses.replace(_INCREMENTAL, name="tokens", block=1, dilation=1),
    # Nothing is sparse: the model as it is, through the engine.
    "dense": Policy(name="dense", block=1, min_resolution=1 << 30, upsample_min_source=1 << 30, norm="dense"),
}


def policy(name):
    """The named policy, or ``name`` itself when it is a :class:`Policy`. PolicyError lists the names otherwise."""
    if isinstance(name, Policy):
        return name
    if name not in POLICIES:
        raise PolicyError(f"unknown policy {name!r}: choose one of {', '.join(POLICIES)}, or pass a sige.Policy")
    return POLICIES[name]


def usual_policy(module):
    """The name of the policy for a module: ``tokens`` where positions overlap nowhere, as in a transformer whose convolutions cut
    patches, else ``incremental``."""
    patches = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, torch.nn.Conv2d) and all(k <= s for k, s in zip(layer.kernel_size, layer.stride))
    }
    kernels = (weight for weight in module.parameters() if weight.dim() > 3 and max(weight.shape[2:]) > 1)
    return "tokens" if all(id(weight) in patches for weight in kernels) else "incremental"
