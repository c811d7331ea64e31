"""Compaction on a CPU: PyTorch's operators at their best, see `composed`."""

from sige.kernels.composed.compaction import compact  # noqa: F401
