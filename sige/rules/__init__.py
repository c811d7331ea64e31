"""Incremental rules, one file an operator family. Importing this package fills ``RULES``."""

from sige.rules import attention, convolution, linear, normalization, pointwise, resampling, shape  # noqa: F401
from sige.rules.fallback import otherwise
from sige.rules.registry import RULES, rule

__all__ = ["RULES", "otherwise", "rule"]
