"""Tests of a backend's own parts are left out where its package is not installed.

Metal's kernels run on CPUs through a shim (metal_shim), which needs a C++ compiler and is written for Linux. On a Mac
its tests are left out: there the parity suite runs the kernels on the GPU.
"""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

from sige.kernels import backends

sys.path.insert(0, str(Path(__file__).parent))  # for test_fused.py, which shares the fixtures of test_parity.py

collect_ignore = (
    []
    if "triton" in backends.available()
    else ["test_triton_rows.py", "test_triton_offline.py", "test_triton_session.py", "test_triton_boxes.py"]
)
if sys.platform == "darwin":
    collect_ignore += ["test_metal.py", "test_metal_check.py", "test_metal_shim.py"]


def _all(file, *sets):
    return [(file, tuple(types.items())) for types in sets]


def _product(source, weight):
    factor = source if source == weight else "float"
    return dict(T_SOURCE=source, T_WEIGHT=weight, T_BIAS=weight, T_OUT=weight, T_FACTOR=factor)


def _copy(source, target, converted):
    return dict(T_FROM=source, T_TO=target, CONVERTED=converted)


def _norm(rows, maps):
    return dict(T_ROW=rows, T_SCALE=maps, T_SHIFT=maps)


def _statistics(rows, sums):
    return dict(T_ROW=rows, T_SUM=sums)


def metal_variants():
    """(file, types) of everything that the tests launch, as `launch.text` takes them."""
    from sige.kernels.mps import launch

    numbers = list(launch.NUMBERS.values())
    copies = [_copy(word, word, 0) for word in launch.WORDS.values()]
    copies += [_copy(*pair, 1) for pair in itertools.permutations(numbers, 2)]
    products = [_product(number, number) for number in numbers] + [_product("bfloat", "float")]
    norms = [_norm(number, number) for number in numbers] + [_norm("half", "float")]
    statistics = [_statistics(rows, sums) for rows in numbers for sums in dict.fromkeys((rows, "float", "bfloat"))]
    return (
        _all("gather", *copies)
        + _all("convolution", *products)
        + _all("normalization", *norms)
        + _all("statistics", *statistics)
    )


@pytest.fixture(scope="session")
def shim_module():
    """The module ``metal_shim/shim.py``."""
    spec = importlib.util.spec_from_file_location("metal_shim", Path(__file__).with_name("metal_shim") / "shim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def metal_shim(shim_module, tmp_path_factory):
    """Metal's kernels for a CPU: compiled as C++, once."""
    from sige.kernels.mps import launch

    made = shim_module.Shim([launch.text(*variant) for variant in metal_variants()], tmp_path_factory.mktemp("metal"))
    yield made
    made.close()


@pytest.fixture
def shimmed(metal_shim, monkeypatch):
    """The `mps` backend runs on CPU tensors through the shim, whatever GPU there is; gives the shim."""
    from sige.kernels.mps import launch

    monkeypatch.setattr(launch, "compile_text", metal_shim.library)
    monkeypatch.setattr(backends, "_refusal", lambda name, device_type: None)
    launch.library.cache_clear()
    yield metal_shim
    launch.library.cache_clear()


@pytest.fixture
def metal(request):
    """The `mps` backend can be forced: it runs on Apple's GPU where there is one, else through the shim."""
    if "mps" not in backends.available():
        request.getfixturevalue("shimmed")
