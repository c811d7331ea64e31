"""What is measured, one file a metric. Adding one: a file here and a YAML in conf/metric/ that names it as ``collect``.

The file defines ``collect(bench, **options) -> Iterator[Reading]``; ``bench`` (``sige.runs.measure.Bench``) holds the
runners, the inputs, and one probe step of each method. Metrics run in ascending ``ORDER`` of their file (default 50);
``ON_META = True`` marks one that needs shapes and no values.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """One value of one metric of one method; becomes one row."""

    method: str
    metric: str
    value: float
    unit: str
    scope: str = "step"
    lo: float = math.nan
    hi: float = math.nan
    n: int = 1
    baseline: str = ""
    reason: str = ""
