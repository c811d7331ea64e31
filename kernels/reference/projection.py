"""Projections of an attention, of this backend's other operators. The contract stands in ``sige.kernels.ops``."""

from sige.kernels.projected_rows import made_of
from sige.kernels.reference.convolution import linear_rows
from sige.kernels.reference.gather import exchange_rows_

project_rows_ = made_of(linear_rows, exchange_rows_)
