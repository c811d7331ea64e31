"""What holds for every test: two threads, no network, and our torchvision hook in place before anything imports it."""

import gc
import os
import sys
from pathlib import Path

gc.disable()  # until the tests begin: what is imported and collected stays to the end anyway

# Before torch and the hub library are first imported, or they do not notice.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "Agg"
# Triton's kernels run in its interpreter where there is no NVIDIA GPU. Triton reads this when torch first imports it.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sige  # noqa: E402, F401  (installs the hook)
from sige.kernels import backends  # noqa: E402

# The GPU that is pretended launches Triton's kernels, so that tests on it need the package, which some systems lack (macOS).
_HERE = Path(__file__).parent
if "triton" not in backends.available():
    collect_ignore = [path for path in _HERE.rglob("test_*.py") if "\nfrom pretended import" in path.read_text()]

sys.path.insert(0, str(_HERE))  # for pretended.py

_MARKERS = {
    "slow": "takes more than five seconds; `-m 'not slow'` leaves it out",
    "gpu": "needs an NVIDIA GPU; deselected, and counted as such, where there is none",
}


def pytest_configure(config):
    for name, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_finish():
    """Leave what is there by now out of every later search for garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config, items):
    """Deselect the tests marked ``gpu`` on a machine without one."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        items[:] = [item for item in items if item not in wanting]
        config.hook.pytest_deselected(items=wanting)
