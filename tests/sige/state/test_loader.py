"""The thread that loads maps ahead of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sige

ASKED = """
import json, os, torch
from sige.state.loader import Loader
loader = Loader(torch.device("cpu")).submit(lambda: sorted(os.sched_getaffinity(0))).result()
print(json.dumps([sorted(os.sched_getaffinity(0)), loader]))
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2,
    reason="threads are bound on Linux, to one of several cores",
)
def test_it_leaves_the_core_that_openmp_binds_the_model_to():
    home = str(Path(sige.__file__).parents[1])
    bound = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": "2", "PYTHONPATH": home}
    told = subprocess.run([sys.executable, "-c", ASKED], env=bound, capture_output=True, text=True, check=True).stdout
    model, loader = json.loads(told.splitlines()[-1])
    allowed = sorted(os.sched_getaffinity(0))
    assert (len(model) < len(allowed), loader) == (len(allowed) > 1, allowed)
