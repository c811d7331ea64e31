"""The allocator's setting: where it applies, that it replaces what a shell left over, and that it does what it says."""

import os
import platform
import subprocess
import sys

import pytest

from sige.runs import allocator
from sige.runs.errors import UserError

_FAULTS = """
import resource, torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make = lambda: torch.ones(12 << 20)  # 48 MiB, above what stock glibc keeps
make(), make()
before = faults()
make()
print(faults() - before)
"""


@pytest.mark.parametrize(
    "setting, device, libc, expected",
    [
        pytest.param("retain", "cpu", "glibc", "retain", id="glibc"),
        pytest.param("stock", "cpu", "glibc", "stock", id="stock"),
        pytest.param("retain", "cpu", "", "system", id="mac"),
        pytest.param("retain", "cuda", "glibc", "caching", id="gpu"),
    ],
)
def test_a_setting_becomes_what_the_machine_has(monkeypatch, setting, device, libc, expected):
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    assert allocator.resolve(setting, device) == expected


def test_an_unknown_setting_is_refused():
    with pytest.raises(UserError, match="unknown hardware.allocator 'tcmalloc'; choose retain or stock."):
        allocator.resolve("tcmalloc", "cpu")


def test_a_setting_left_over_from_a_shell_does_not_survive():
    left_over = {"MALLOC_MMAP_MAX_": "7", "GLIBC_TUNABLES": "x", "HOME": "/home"}
    assert allocator.environment("stock", left_over) == {"HOME": "/home"}
    assert allocator.environment("retain", left_over) == {"HOME": "/home", **allocator.RETAIN}


def test_retain_takes_no_page_faults_where_stock_does():
    """Counted, not timed. Where the C library is not glibc, both settings must at least start a process."""
    found = {}
    for setting in ("stock", "retain"):
        environment = allocator.environment(setting, dict(os.environ))
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        found[setting] = int(done.stdout)
    if platform.libc_ver()[0] == "glibc":
        assert found["retain"] < 100 < found["stock"]
