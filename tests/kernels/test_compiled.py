"""The operators inside `torch.compile`: one graph, no copy besides what an operator returns, results laid out as announced."""

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import sige  # noqa: F401
from sige.kernels import backends, ops


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TAPS = torch.tensor([[0, 1, 2, -1], [3, 4, -1, 5], [6, 7, 8, 9]])
CALLS = {
    "gather_rows": lambda: (random(10, 8), torch.tensor([0, 3, 7])),
    "scatter_rows_": lambda: (random(10, 8), torch.tensor([0, 3, 7]), random(3, 8, seed=1)),
    "exchange_rows_": lambda: (random(10, 8), torch.tensor([0, 3, 7]), random(3, 8, seed=1)),
    "conv_rows": lambda: (random(10, 8), TAPS, random(16, 8, 2, 2, seed=1), random(16)),
    "conv_tiles": lambda: (random(10, 8), torch.arange(32).view(2, 16) % 10, 2, random(12, 8, 3, 3), None),
    "conv_map": lambda: (random(2, 8, 7, 9), random(16, 8, 3, 3, seed=1), random(16), (2, 1), (1, 0)),
    "linear_rows": lambda: (random(5, 8), random(16, 8, seed=1), None),
    "affine_rows": lambda: (random(5, 8), random(2, 8), random(2, 8, seed=1), torch.tensor([0, 1, 1, 0, 1])),
    "activate_rows": lambda: (
        *(random(3, 8), random(1, 8), random(1, 8, seed=1), None, "silu", 0.0),
        *(random(10, 8), torch.tensor([0, 3, 7])),
    ),
    "conv_rows_fused": lambda: (random(10, 8), TAPS, random(16, 8, 2, 2, seed=1), random(16), 1, 2, random(1, 16)),
    "normalize_rows_": lambda: (
        *(random(12, 5), random(12, 3, seed=2), None, random(10, 8, seed=1), torch.tensor([0, 3, 7])),
        *(torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 8), 90.0, dtype=torch.float64)),
        *(None, random(8), None, 4, 40, 1e-5, "silu", 0.0, random(30, 8), torch.arange(12) * 2),
    ),
    "normalize_map": lambda: (random(2, 8, 7, 9), 4, random(8), None, 1e-5, "silu"),
    "conv_map_fused": lambda: (
        *(random(2, 16, 7, 9), random(3, 16, 3, 3, seed=1), random(3), (1, 1), (1, 1), (1, 1), 1),
        *(4, None, random(16), 1e-5, "silu"),
    ),
    "update_statistics_": lambda: (
        *(random(12, 8), random(10, 8, seed=1), torch.tensor([0, 3, 7])),
        *(torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 8), 90.0, dtype=torch.float64)),
        *(None, random(8), None, 4, 40, 1e-5),
    ),
    "project_rows_": lambda: (
        *(random(3, 8), random(16, 8, seed=1), random(16), random(16, 8, seed=2), None, random(16, 8, seed=3), None),
        *(random(10, 16), random(10, 16, seed=4), torch.tensor([0, 3, 7])),
    ),
    "attend": lambda: (random(2, 3, 5, 8), random(2, 3, 7, 8, seed=1), random(2, 3, 7, 8, seed=2)),
    "compact": lambda: (random(2, 5, 7) > 0, 40),
}


def compiled(function, *args):
    """(result, the code that was made of the function), in one graph or an error."""
    torch._dynamo.reset()
    # A graph kept on disk would announce what the fake implementations said when it was made.
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        result, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), *args)
    return result, code.split("def call(")[1].split("def benchmark")[0]


@pytest.mark.parametrize(
    "queries, keys, heads", [pytest.param(130, 1030, 2, id="long"), pytest.param(5, 40, 3, id="short")]
)
def test_attention_of_any_length_is_laid_out_as_announced(queries, keys, heads):
    args = random(2, heads, queries, 16), random(2, heads, keys, 16, seed=1), random(2, heads, keys, 16, seed=2)
    result, _ = compiled(ops.attend, *args)
    assert torch.allclose(result, ops.attend(*args), atol=1e-5)


def leaves(result):
    return [result] if isinstance(result, torch.Tensor) else list(result or ())


def test_every_operator_is_compiled_here():
    assert set(CALLS) == set(backends.FAMILIES)


@pytest.mark.parametrize("name", list(CALLS))
def test_one_graph_with_the_same_result(name):
    # The compiled code checks the layout of what an operator returns against what its fake implementation said.
    plain, args = CALLS[name](), CALLS[name]()
    expected = leaves(getattr(ops, name)(*plain))
    result, code = compiled(lambda *given: getattr(ops, name)(*given), *args)
    assert code.count(f"torch.ops.sige.{name}.default(") == 1
    assert code.count("assert_size_stride(") >= len(expected)
    for got, wanted in zip([*leaves(result), args[0]], [*expected, plain[0]], strict=True):
        assert torch.equal(got, wanted)


def without_target(rows, maps, weight, index):
    return [
        lambda: ops.activate_rows(rows, *maps, None, "silu"),
        lambda: ops.activate_rows(rows, *maps, activation="leaky_relu", slope=0.2).tanh(),
        lambda: ops.conv_rows_fused(rows, index, weight, scale=maps[0], shift=maps[1], activation="gelu", raw=False)[1],
        lambda: ops.conv_rows_fused(rows, index, weight)[0] + 1,
    ]


@pytest.mark.parametrize(
    "case", range(4), ids=["activated", "activated leaky", "fused second result", "fused raw rows"]
)
def test_one_that_may_write_and_is_given_nothing_to_write(case):
    args = random(10, 8), [random(1, 8), random(1, 8, seed=1)], random(8, 8, 2, 2, seed=1), TAPS
    result, code = compiled(lambda *given: without_target(*given)[case](), *args)
    called = re.findall(r"torch\.ops\.sige\.(\w+\.\w+)\(", code)
    assert called == [["activate_rows.unwritten"], ["conv_rows_fused.default"]][case // 2]
    assert torch.allclose(result, without_target(*args)[case](), atol=1e-6)


def step(target, index, rows, weight):
    out = ops.linear_rows(rows, weight, None)
    ops.scatter_rows_(target, index, out)
    return ops.gather_rows(target, index)


def test_a_write_in_place_stays_one_and_nothing_is_copied():
    index, rows, weight = torch.arange(0, 100, 2), random(50, 16), random(24, 16, seed=1)
    target, expected = random(1000, 24, seed=2), random(1000, 24, seed=2)
    step(expected, index, rows, weight)
    _, code = compiled(step, target, index, rows, weight)
    called = re.findall(r"torch\.ops\.(\w+\.\w+)\.default\(", code)
    assert torch.equal(target, expected)
    assert called == ["sige.linear_rows", "sige.scatter_rows_", "sige.gather_rows"]
    assert not re.search(r"empty_strided|\.copy_|clone|cpp_fused|triton_", code)
