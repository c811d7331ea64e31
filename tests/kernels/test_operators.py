"""Besides the numbers: chunks, prepacked weights, choice of backend, schemas, fake tensors and MAC formulas."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import sige  # noqa: F401
from sige.kernels import backends, ops
from sige.kernels.composed import convolution
from sige.kernels.cpu import library, panels


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def case():
    """A 3x3 convolution of a 20x20 map at 300 positions: source, index with taps outside the map, weight, bias."""
    taps = F.unfold(torch.arange(1.0, 401.0).view(1, 1, 20, 20), 3, padding=1)[0].t().long() - 1
    return random(400, 24), taps[:300].contiguous(), random(32, 24, 3, 3, seed=1), random(32, seed=2)


@pytest.mark.parametrize("groups", [1, 3])
def test_chunks_equal_one_piece(case, monkeypatch, groups):
    source, index, weight, bias = case
    weight = weight[:30, : 24 // groups].contiguous()
    whole = ops.conv_rows(source, index, weight, bias[:30], groups)
    calls = []
    select = torch.index_select
    monkeypatch.setattr(torch, "index_select", lambda *args: calls.append(args) or select(*args))
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 1)
    monkeypatch.setattr(convolution, "ONE_CHUNK_BYTES", 1)
    with backends.forced("composed"):
        pieces = ops.conv_rows(source, index.clone(), weight, bias[:30], groups)
    assert (len(calls), torch.allclose(pieces, whole, rtol=1e-5, atol=1e-4)) == (5, True)


# Backends that keep weights in an order of their own, and whether this machine lets them.
PACKING = [
    ("composed", convolution, convolution.prepacking),
    ("cpu", panels, lambda: library.library() is not None),
]


def linear_is_exact(weight):
    rows = random(100, weight.shape[1], seed=3)
    got = ops.linear_rows(rows.to(weight.dtype), weight, None)
    return got.dtype == weight.dtype and torch.allclose(got.float(), rows @ weight.float().t(), rtol=1e-2, atol=0.2)


def convolution_is_exact(weight):
    image = random(1, weight.shape[1], 5, 5, seed=3)
    got = ops.conv_map(image.to(weight.dtype), weight, None)
    return got.dtype == weight.dtype and torch.allclose(
        got.float(), F.conv2d(image, weight.float()), rtol=1e-2, atol=0.2
    )


def in_place(weight):
    with torch.no_grad():
        weight.mul_(-3)


def data(weight):
    weight.data = random(*weight.shape, seed=9)


def data_twice(weight):
    # The second storage may lie where the first one lay.
    shape = weight.shape
    weight.data = torch.zeros(3)
    weight.data = random(*shape, seed=9)


def copied(weight):
    torch.nn.utils.vector_to_parameters(random(weight.numel(), seed=5), [weight])


def dtype(weight):
    layer = torch.nn.Module()
    layer.weight = weight
    layer.bfloat16()


SHAPE = {2: (32, 96), 4: (32, 96, 1, 1)}


@pytest.mark.parametrize("change", [in_place, data, data_twice, copied, dtype])
@pytest.mark.parametrize(
    "exact, sides", [(linear_is_exact, 2), (convolution_is_exact, 4)], ids=["linear", "convolution"]
)
def test_changed_weights_are_packed_again(exact, sides, change):
    weight = torch.nn.Parameter(random(*SHAPE[sides], seed=1), requires_grad=False)
    before = exact(weight)
    change(weight)
    assert (before, exact(weight)) == (True, True)


@pytest.mark.parametrize("backend, module, there", PACKING, ids=[backend for backend, *_ in PACKING])
def test_packed_weights_are_let_go_with_their_weight(backend, module, there):
    before, weight = module.packed_bytes(), random(64, 128)
    with backends.forced(backend):
        ops.linear_rows(random(50, 128), weight, None)
    held = module.packed_bytes()
    del weight
    assert (held - before, module.packed_bytes()) == (64 * 128 * 4 if there() else 0, before)


def test_every_operator_is_in_every_backend():
    found = {
        (name, operator)
        for name in backends.available()
        for operator in backends.FAMILIES
        if backends._load(name, operator)
    }
    assert len(found) == len(backends.available()) * len(backends.FAMILIES)


def test_forced_backend_holds_inside_the_block_only(monkeypatch):
    monkeypatch.delenv("SIGE_BACKEND", raising=False)
    with backends.forced("reference"):
        inside = backends.active("cpu")
    assert (inside, backends.active("cpu")) == ("reference", "cpu")


def test_forced_backend_ends_with_an_exception(monkeypatch):
    monkeypatch.delenv("SIGE_BACKEND", raising=False)
    with pytest.raises(KeyError), backends.forced("reference"):
        raise KeyError
    assert backends.active("cpu") == "cpu"


def test_forced_backend_is_the_one_that_runs(case, monkeypatch):
    monkeypatch.setattr(torch, "index_select", None)  # the cpu backend cannot do without
    with backends.forced("reference"):
        assert ops.gather_rows(case[0], torch.arange(3)).shape == (3, 24)


def test_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("SIGE_BACKEND", "reference")
    assert backends.active("cpu") == "reference"


def test_device_without_kernels_runs_the_reference(monkeypatch):
    monkeypatch.delenv("SIGE_BACKEND", raising=False)
    assert backends.active("xpu") == "reference"


UNKNOWN = "^unknown kernel backend 'cudnn': choose one of reference, composed, cpu, triton, mps$"


def test_unknown_backend_in_the_environment(monkeypatch):
    monkeypatch.setenv("SIGE_BACKEND", "cudnn")
    with pytest.raises(ValueError, match=UNKNOWN):
        ops.gather_rows(random(3, 3), torch.arange(2))


def test_unknown_backend_forced():
    with pytest.raises(ValueError, match=UNKNOWN), backends.forced("cudnn"):
        pass


def arguments():
    index = torch.tensor([0, 3, 7])
    taps = torch.tensor([[0, 1, 2, -1], [3, 4, -1, 5], [6, 7, 8, 9]])
    rows, scale = random(3, 8), random(2, 8, seed=1)
    return {
        "gather_rows": (random(10, 8), index),
        "scatter_rows_": (random(10, 8), index, rows),
        "exchange_rows_": (random(10, 8), index, rows),
        "conv_rows": (random(10, 8), taps, random(16, 8, 2, 2, seed=3), random(16), 1),
        "conv_tiles": (random(10, 8), torch.arange(-1, 31).view(2, 16) % 10, 2, random(12, 4, 3, 3), random(12), 2),
        "conv_map": (random(2, 8, 7, 9), random(16, 4, 3, 3, seed=3), random(16), (2, 1), (1, 0), (1, 2), 2),
        "linear_rows": (rows, random(16, 8, seed=3), None),
        "affine_rows": (rows, scale, scale, torch.tensor([0, 1, 1])),
        "activate_rows": (rows, scale, scale, torch.tensor([0, 1, 1]), "silu", 0.0, random(10, 8), index),
        "conv_rows_fused": (
            *(random(10, 8), taps, random(16, 8, 2, 2, seed=3), random(16), 1, 3, random(1, 16)),
            *(random(7, 16), torch.tensor([6, 0, 2]), None, random(1, 16), random(1, 16), "gelu", 0.0),
            *(random(10, 16), index, True, None, None),
        ),
        "update_statistics_": (
            *(random(12, 8), random(10, 8, seed=1), index, torch.zeros(2, 4), torch.full((2, 8), 90.0)),
            *(torch.tensor([0, 0, 1]), random(8), None, 4, 40, 1e-5),
        ),
        "normalize_rows_": (
            *(random(12, 5), random(20, 3), torch.arange(12) + 4, random(10, 8, seed=1), index, torch.zeros(2, 4)),
            *(torch.full((2, 8), 90.0), torch.tensor([0, 0, 1]), random(8), None, 4, 40, 1e-5, "silu", 0.0),
            *(random(30, 8), torch.arange(12) * 2),
        ),
        "normalize_map": (random(2, 8, 7, 9), 4, random(8), None, 1e-5, "leaky_relu", 0.1),
        "conv_map_fused": (
            *(random(2, 16, 7, 9), random(3, 16, 3, 3, seed=3), random(3), (1, 1), (1, 1), (1, 1), 1),
            *(4, random(16), random(16, seed=2), 1e-5, "silu", 0.0),
        ),
        "compact": (random(2, 5, 7) > 0, 40),
        "project_rows_": (
            *(rows, random(16, 8, seed=3), random(16), random(12, 8, seed=4), None, random(12, 8, seed=5), random(12)),
            *(random(10, 12), random(10, 12, seed=6), index),
        ),
        "attend": (random(2, 3, 5, 8), random(2, 3, 7, 8, seed=1), random(2, 3, 7, 6, seed=2), None, 0.3),
    }


@pytest.mark.parametrize("name", list(arguments()))
@pytest.mark.parametrize(
    "backend", dict.fromkeys([*backends.available(), *(["mps"] if sys.platform != "darwin" else [])])
)
def test_operator_keeps_its_schema(name, backend, request):
    if backend == "mps":
        request.getfixturevalue("metal")
    gpu = {"mps": ("mps", torch.backends.mps), "triton": ("cuda", torch.cuda)}.get(backend)
    device = gpu[0] if gpu and gpu[1].is_available() else "cpu"
    args = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments()[name])
    # Nothing to differentiate: the session runs without gradients, so autograd's own check does not apply.
    with backends.forced(backend), torch.no_grad():
        operator = getattr(torch.ops.sige, name).default
        results = torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))
    assert results == {"test_schema": "SUCCESS", "test_faketensor": "SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(arguments()))
def test_fake_result_looks_like_the_real_one(name, dtype):
    args = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments()[name]]
    operator = getattr(torch.ops.sige, name)
    real = operator(*args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = operator(*[mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args])
    look = lambda out: [(x.shape, x.dtype) for x in (out if isinstance(out, tuple) else (out,)) if x is not None]  # noqa: E731
    assert look(fake) == look(real)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_formula(groups):
    n, kernel, channels, outputs = 5, 3, 8, 12
    with FlopCounterMode(display=False) as counter:
        weight = random(outputs, channels // groups, kernel, kernel)
        torch.ops.sige.conv_rows(random(9, channels), torch.zeros(n, kernel**2, dtype=torch.long), weight, None, groups)
    assert counter.get_total_flops() == 2 * n * kernel**2 * (channels // groups) * outputs


def test_tile_formula():
    with FlopCounterMode(display=False) as counter:
        torch.ops.sige.conv_tiles(random(9, 8), torch.zeros(5, 16, dtype=torch.long), 2, random(12, 4, 3, 3), None, 2)
    assert counter.get_total_flops() == 2 * (5 * 2 * 2) * 9 * 4 * 12


def test_whole_convolution_formula():
    with FlopCounterMode(display=False) as counter:
        torch.ops.sige.conv_map(random(2, 8, 7, 9), random(16, 4, 3, 3), None, (2, 1), (1, 0), (1, 2), 2)
    assert counter.get_total_flops() == 2 * (2 * 4 * 5) * 9 * 4 * 16


def test_whole_fused_convolution_formula():
    with FlopCounterMode(display=False) as counter:
        ops.conv_map_fused(random(2, 8, 7, 9), random(3, 8, 3, 3), padding=(1, 1), norm_groups=4, activation="silu")
    assert counter.get_total_flops() == 2 * (2 * 7 * 9) * 9 * 8 * 3


def test_fused_formula():
    with FlopCounterMode(display=False) as counter:
        ops.conv_rows_fused(random(9, 8), torch.zeros(5, 9, dtype=torch.long), random(12, 8, 3, 3), count=4, raw=False)
        ops.conv_rows_fused(random(5, 8), None, random(12, 8))
    assert counter.get_total_flops() == 2 * (4 * 9 + 5) * 8 * 12


def test_projection_formula():
    with FlopCounterMode(display=False) as counter:
        torch.ops.sige.project_rows_(*arguments()["project_rows_"])
    assert counter.get_total_flops() == 2 * 3 * 8 * (16 + 12 + 12)


def test_linear_formula():
    with FlopCounterMode(display=False) as counter:
        torch.ops.sige.linear_rows(random(5, 8), random(12, 8), None)
    assert counter.get_total_flops() == 2 * 5 * 8 * 12


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_list_without_places_is_refused(capacity):
    with pytest.raises(ValueError, match=f"^capacity {capacity} holds no row: it must be at least 1$"):
        ops.compact(torch.ones(1, 2, 2, dtype=torch.bool), capacity)
