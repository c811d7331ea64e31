"""Affine map and statistics on a CPU: PyTorch's operators at their best, see `composed`."""

from sige.kernels.composed.normalization import affine_rows, update_statistics_  # noqa: F401
