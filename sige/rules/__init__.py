"""Incremental rules, one file an operator family. Importing this package fills ``RULES``."""

from sige.rules import (  # noqa: F401
    attention,
    convolution,
    einsum,
    elementwise,
    features,
    global_pooling,
    linear,
    normalization,
    padding,
    patches,
    pointwise,
    pooling,
    reductions,
    resampling,
    sequence,
    shape,
    transposed,
)
from sige.rules.fallback import otherwise
from sige.rules.registry import RULES, rule
from sige.rules.written_out import follow

__all__ = ["RULES", "follow", "otherwise", "rule"]
