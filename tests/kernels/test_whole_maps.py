"""Whole maps through norm, activation and convolution on every backend, against float64; see test_parity."""

import pytest
import torch
import torch.nn.functional as F
from test_parity import BATCH, DTYPES, HEIGHT, WIDTH, backend, call, close, random, unwritten_memory_is_nan  # noqa: F401

BEFORE = pytest.mark.parametrize(
    "groups, activation",
    [
        pytest.param(0, "silu", id="silu"),
        pytest.param(8, "none", id="norm"),
        pytest.param(8, "silu", id="norm and silu"),
        pytest.param(4, "leaky_relu", id="norm and leaky relu"),
        pytest.param(24, "gelu", id="instance norm and gelu"),
    ],
)


def normalized(number, layout, groups, activation, channels=24):
    """Operands of a norm, an activation's slope last, and what they make in float64 of a map far from zero."""
    image = random(BATCH, channels, HEIGHT, WIDTH, dtype=number) + 4
    weight, bias = random(channels, dtype=number, seed=3), random(channels, dtype=number, seed=4)
    exact = image.double()
    if groups:
        exact = F.group_norm(exact, groups, weight.double(), bias.double(), 1e-3)
    if activation != "none":
        exact = getattr(F, activation)(exact)
    operands = image.contiguous(memory_format=layout), groups, weight, bias, 1e-3, activation, 0.01
    return operands, exact


@pytest.mark.parametrize("dtype", DTYPES)
@BEFORE
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_normalize_map(dtype, layout, groups, activation):
    given, exact = normalized(dtype, layout, groups, activation)
    before = given[0].clone()
    got = call("normalize_map", *given)
    assert (got.dtype, close(got, exact), torch.equal(given[0], before)) == (dtype, True, True)


@pytest.mark.parametrize("dtype", DTYPES)
@BEFORE
@pytest.mark.parametrize("outputs, kernel", [(3, 3), (13, 5), (32, 3)], ids=["3", "13, 5x5", "32"])
def test_conv_map_fused(dtype, groups, activation, outputs, kernel):
    (image, *norm), exact = normalized(dtype, torch.channels_last, groups, activation)
    weight, bias = random(outputs, 24, kernel, kernel, dtype=dtype, seed=1), random(outputs, dtype=dtype, seed=2)
    exact = F.conv2d(exact, weight.double(), bias.double(), padding=kernel // 2)
    pairs = (1, 1), (kernel // 2, kernel // 2), (1, 1)
    got = call("conv_map_fused", image, weight, bias, *pairs, 1, *norm)
    assert (got.dtype, close(got, exact), got.is_contiguous(memory_format=torch.channels_last)) == (dtype, True, True)
