"""A group norm that its rows change, of this backend's other operators. The contract stands in ``sige.kernels.ops``."""

from sige.kernels.normalized_rows import made_of
from sige.kernels.reference.fused import activate_rows
from sige.kernels.reference.normalization import update_statistics_

normalize_rows_ = made_of(update_statistics_, activate_rows)
