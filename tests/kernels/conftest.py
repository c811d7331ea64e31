"""Tests of a backend's own parts are left out where its package is not installed."""

from sige.kernels import backends

collect_ignore = (
    []
    if "triton" in backends.available()
    else ["test_triton_rows.py", "test_triton_offline.py", "test_triton_session.py"]
)
