"""Attention on a CPU: PyTorch's operators at their best, see `composed`."""

from sige.kernels.composed.attention import attend  # noqa: F401
