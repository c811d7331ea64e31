"""Projections of an attention, of this backend's other operators. The contract stands in ``sige.kernels.ops``."""

from sige.kernels.mps.convolution import linear_rows
from sige.kernels.mps.gather import exchange_rows_
from sige.kernels.projected_rows import made_of

project_rows_ = made_of(linear_rows, exchange_rows_)
