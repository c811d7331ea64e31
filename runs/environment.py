"""What a number was measured on: device, versions, threads, load, memory, governor, commit, allocator."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("torch", "diffusers", "transformers", "triton", "numpy")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def libraries() -> dict[str, str]:
    """Versions of the libraries that make the numbers, of those that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def processor() -> str:
    """The CPU as it names itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    if platform.system() == "Darwin":
        named = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if named:
            return named
    return platform.processor() or platform.machine()


def cores() -> int:
    """Physical cores this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def machine(device: str, threads: int | None) -> str:
    """The device of a run, as it names itself, with the number of threads on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if device == "meta":
        return "no arithmetic (meta tensors)"
    return f"{processor()}, {threads} threads" if device == "cpu" else f"{processor()} ({device})"


def commit() -> str:
    """Git commit of the checkout, with ``+changes`` where files differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    head = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else ""
    return head + "+changes" * bool(head and _output("git", "-C", str(root), "status", "--porcelain"))


def describe(hardware: dict) -> dict:
    """Everything worth knowing beside a number; JSON-ready. Read in the process that measures."""
    import psutil

    memory = psutil.virtual_memory()
    facts = {
        "machine": hardware["machine"],
        "device": hardware["device"],
        "platform": platform.platform(),
        "libraries": libraries(),
        "threads": hardware.get("threads"),
        "allocator": hardware["allocator"],
        "kernel_backend": hardware.get("backend"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "omp_proc_bind": os.environ.get("OMP_PROC_BIND", "default"),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),  # the machine's: this process may be bound to one
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "memory_mib": memory.total >> 20,
        "memory_free_mib": memory.available >> 20,
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        "commit": commit(),
    }
    if hardware.get("backend") == "triton":
        from sige.kernels import backends

        facts["triton_interpreted"] = backends.interpreting()
    if hardware.get("backend") == "cpu":
        from sige.kernels.cpu import library

        facts["compiled_kernels"] = library.described()
    if hardware["device"] == "cuda":
        import torch

        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": bool(hardware.get("tf32")),
        }
    return facts


def _output(*command: str) -> str:
    """Standard output of a short command, "" where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
