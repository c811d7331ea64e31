"""Gather and scatter on a CPU: PyTorch's operators at their best, see `composed`."""

from sige.kernels.composed.gather import exchange_rows_, gather_rows, scatter_rows_  # noqa: F401
