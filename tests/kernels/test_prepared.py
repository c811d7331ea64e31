"""Operators prepared for one place of a replayed step: the same bits as the operators themselves, call after call, whatever changes."""

import pytest
import torch
import torch.nn.functional as F
from test_fused import GEOMETRIES, WANTS, Case

import sige  # noqa: F401
from sige.kernels import backends
from sige.kernels.cpu import library
from sige.kernels.cpu import prepared as of_cpu

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
NAMES = (
    "source", "index", "weight", "bias", "groups", "count", "vector", "residual", "residual_rows", "sample", "scale", "shift",
    "activation", "slope", "target", "positions", "raw",
)  # fmt: skip

pytestmark = pytest.mark.skipif(library.library() is None, reason="no compiled kernels on this machine")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair(operator):
    """(the operator, the same prepared)."""
    return backends.implementation(operator, "cpu"), backends.prepared(operator, "cpu")


def arguments(case, seed):
    """Of a fused convolution; ``seed`` makes other numbers of the same shapes."""
    given = dict.fromkeys(NAMES) | dict(activation="none", slope=0.0, raw=True) | case.given
    for name in ("source", "vector", "residual", "scale", "shift", "target"):
        if given[name] is not None:
            given[name] = random(*given[name].shape, seed=seed, dtype=given[name].dtype)
    return given


def same(operator, prepared, given, written=()):
    """Whether both give the same, and leave the same in the arguments ``written``."""
    copies = [[x.clone() if n in written and x is not None else x for n, x in given.items()] for _ in range(2)]
    results = [function(*copy) for function, copy in zip((operator, prepared), copies)]
    results = [result if isinstance(result, tuple) else (result,) for result in results]
    left = [[x for n, x in zip(given, copy) if n in written and x is not None] for copy in copies]
    pairs = [*zip(*results), *zip(*left)]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@DTYPES
@GEOMETRIES
@WANTS
def test_a_fused_convolution_call_after_call(dtype, geometry, wants):
    operator, prepared = pair("conv_rows_fused")
    case = Case(dtype, "ragged", geometry, wants)
    assert [same(operator, prepared, arguments(case, seed), {"target"}) for seed in (1, 2, 3)] == [True] * 3


def test_positions_may_change():
    """Winograd's quads are those of the positions: neighbours at one time, single ones at another."""
    operator, prepared = pair("conv_rows_fused")
    taps = F.unfold(torch.arange(1.0, 4097.0).view(1, 1, 64, 64), 3, padding=1)[0].t().long() - 1
    weight, rows = random(64, 64, 3, 3, seed=1), random(4096, 64)
    block, apart = torch.arange(4096).view(64, 64)[:16, :16].flatten(), torch.arange(4096)[::16]
    nothing = dict.fromkeys(NAMES) | dict(
        source=rows, weight=weight, groups=1, count=256, activation="none", slope=0.0, raw=True
    )
    assert [same(operator, prepared, nothing | dict(index=taps[places])) for places in (block, apart, block)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda given: given["weight"].mul_(2), id="weight in place"),
        pytest.param(lambda given: setattr(given["weight"], "data", given["weight"].data * 3), id="weight's data"),
        pytest.param(lambda given: given["bias"].add_(1), id="bias in place"),
        pytest.param(
            lambda given: given.update(source=given["source"].t().contiguous().t()), id="source of other strides"
        ),
        pytest.param(
            lambda given: given.update(index=given["index"].t().contiguous().t()), id="index of other strides"
        ),
    ],
)
def test_what_changes_between_two_calls_is_seen(change):
    operator, prepared = pair("conv_rows_fused")
    given = arguments(Case(torch.float32, "ragged", (34, 48, 3, 1), {"vector"}), 1)
    before = prepared(*given.values())[0]
    change(given)
    after = prepared(*given.values())[0]
    moved = given["source"].is_contiguous() and given["index"].is_contiguous()
    assert (torch.equal(after, operator(*given.values())[0]), torch.equal(after, before)) == (True, not moved)


def test_numbers_of_rows_in_32_bits_are_widened_each_time():
    operator, prepared = pair("conv_rows_fused")
    given = arguments(Case(torch.float32, "ragged", (34, 48, 3, 1), {"vectors", "residual", "rows of a residual"}), 1)
    narrow = {name: given[name].int() for name in ("index", "sample", "residual_rows")}
    assert [same(operator, prepared, given | narrow) for _ in range(2)] == [True] * 2


def test_channels_in_two_tensors_are_joined_each_time():
    operator, prepared = pair("conv_rows_fused")
    given = arguments(Case(torch.float32, "ragged", (40, 24, 0, 1), set()), 1)
    rows = given["source"]
    given |= dict(source=rows[:, :30].contiguous(), rest=rows[:, 30:].contiguous(), rest_rows=None)
    assert [same(operator, prepared, given) for _ in range(2)] == [True] * 2


@DTYPES
@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_norm_and_activation_call_after_call(dtype, activation):
    operator, prepared = pair("activate_rows")
    places, sample = torch.arange(0, 60, 3), torch.arange(20) % 2
    names = "rows", "scale", "shift", "sample", "activation", "slope", "target", "positions"
    for seed in (1, 2):
        rows, target = random(20, 24, seed=seed, dtype=dtype), random(60, 24, seed=seed + 7, dtype=dtype)
        maps = [random(2, 24, seed=seed + 9, dtype=dtype) for _ in range(2)]
        given = dict(zip(names, (rows, *maps, sample, activation, 0.0, target, places)))
        assert same(operator, prepared, given, {"target"})


@DTYPES
def test_statistics_call_after_call(dtype):
    operator, prepared = pair("update_statistics_")
    names = "rows", "sums", "tile_index", "centre", "totals", "sample", "weight", "bias", "groups", "map_values", "eps"
    for seed in (1, 2):
        values = (
            random(64, 8, seed=seed, dtype=dtype), random(40, 8, seed=seed + 1, dtype=dtype), torch.tensor([3, 7, 21, 30]),
            random(2, 4).double(), random(2, 8).double().abs() * 1000, torch.tensor([0, 0, 1, 1]), random(8, dtype=dtype), None, 4, 640,
            1e-5,
        )  # fmt: skip
        assert same(operator, prepared, dict(zip(names, values)), {"sums"})


@pytest.mark.parametrize("operator", ["conv_rows", "linear_rows"])
def test_products_alone_call_after_call(operator):
    function, prepared = pair(operator)
    taps, weight = torch.randint(-1, 50, (20, 9)), random(24, 40, 3, 3, seed=1)
    for seed in (2, 3):
        rows = random(50, 40, seed=seed)
        given = (
            (rows, taps, weight, None, 1) if operator == "conv_rows" else (rows, weight[:, :, 0, 0].contiguous(), None)
        )
        assert torch.equal(function(*given), prepared(*given))


@pytest.mark.parametrize("operator", [name for name in backends.FAMILIES if name not in of_cpu._PREPARED])
def test_what_is_not_prepared_is_the_operator_itself(operator):
    assert backends.prepared(operator, "cpu") is backends.implementation(operator, "cpu")


@pytest.mark.parametrize("operator", list(of_cpu._PREPARED))
def test_other_backends_prepare_nothing(operator):
    with backends.forced("composed"):
        assert backends.prepared(operator, "cpu") is backends.implementation(operator, "cpu")


def test_two_places_know_nothing_of_each_other():
    assert backends.prepared("conv_rows", "cpu") is not backends.prepared("conv_rows", "cpu")
