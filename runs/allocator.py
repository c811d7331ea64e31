"""Memory allocator settings of a worker process, the same for every method it times.

Stock glibc gives a map above 32 MiB back to the system as soon as it is freed and takes a page fault for each 4 KiB of
the next one: a dense forward of large maps pays far more for that than a sparse one, a speed-up that is nobody's merit.
``retain`` keeps freed memory in the process. Measured with a 128-channel 3x3 convolution and SiLU at 256x256, one
thread: stock 16,410 faults and 101 ms a call, retain 0 faults and 77 ms; the church model, two threads: 1.7-2.0 s and
1.2-1.4 s. glibc reads these variables before the first allocation, so they must be set for the child, not in it.
"""

import platform

from sige.runs.errors import UserError

RETAIN = {
    "MALLOC_MMAP_MAX_": "0",  # large blocks come from the heap, not from a mapping of their own
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),  # the top of the heap is not given back
    "MALLOC_TOP_PAD_": str(256 << 20),  # and grows in large steps
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads: other arenas are capped at 64 MiB
    # Small freed blocks merge with their neighbours at once. Cached apart they keep two large holes from becoming one:
    # the same tensor, made and freed again and again, takes a fresh place (and its page faults) seven times over.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
_OURS = (*RETAIN, "MALLOC_MMAP_THRESHOLD_")


def resolve(setting: str, device: str) -> str:
    """``retain`` or ``stock`` under glibc; elsewhere ``system`` on a CPU, ``caching`` (torch's own) on a GPU, ``none`` on meta."""
    if setting not in ("retain", "stock"):
        raise UserError(f"unknown hardware.allocator {setting!r}; choose retain or stock.")
    if device == "meta":
        return "none"
    if device != "cpu":
        return "caching"
    return setting if platform.libc_ver()[0] == "glibc" else "system"


def environment(allocator: str, inherited: dict[str, str]) -> dict[str, str]:
    """``inherited`` environment with exactly this allocator setting: one left over from a shell does not survive."""
    clean = {key: value for key, value in inherited.items() if key not in _OURS}
    return {**clean, **RETAIN} if allocator == "retain" else clean
