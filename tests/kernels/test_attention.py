"""Attention against float64, on every backend, with shapes on both sides of the CPU's choice between its two ways."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import sige  # noqa: F401
from sige.kernels import ops
from sige.kernels.cpu import attention as cpu
from sige.kernels.mps import attention as mps
from sige.kernels.reference import attention as reference
from sige.kernels.triton import attention as triton

BACKENDS = [
    pytest.param(reference.attend, id="reference"),
    pytest.param(cpu.attend, id="cpu"),
    pytest.param(triton.attend, id="triton"),
    pytest.param(mps.attend, id="mps"),
]
SHAPES = [  # batch, heads, queries, keys, width of keys, width of values
    pytest.param((1, 1, 1, 1, 8, 8), id="one query, one key"),
    pytest.param((1, 2, 130, 1030, 24, 40), id="products, odd sizes"),
    pytest.param((2, 3, 200, 1024, 16, 16), id="products, batch"),
    pytest.param((1, 1, 700, 2100, 8, 8), id="products, several chunks"),
    pytest.param((2, 2, 127, 1024, 16, 16), id="too few queries for products"),
]


def tensors(shape, dtype=torch.float32):
    batch, heads, queries, keys, width, value_width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((queries, width), (keys, width), (keys, value_width))
    # rows first, as the engine keeps them: what attention gets are views
    return [torch.randn(batch, n, heads, w, generator=generator).to(dtype).transpose(1, 2) for n, w in sizes]


def error(got, query, key, value, mask=None):
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), mask, scale=0.3)
    return ((got.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attend", BACKENDS)
def test_float32_agrees_with_float64(attend, shape):
    query, key, value = tensors(shape)
    assert error(attend(query, key, value, None, 0.3), query, key, value) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attend", BACKENDS)
def test_bfloat16_keeps_its_scores_in_float32(attend, shape):
    query, key, value = tensors(shape, torch.bfloat16)
    assert error(attend(query, key, value, None, 0.3), query, key, value) < 4e-3


@pytest.mark.parametrize("dense", [True, False], ids=["heads apart", "heads together"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attend", BACKENDS)
def test_a_result_lies_token_after_token(attend, shape, dense):
    found = [x if dense else x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(shape)]
    assert attend(*found, None, 0.3).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("attend", BACKENDS)
def test_a_bool_mask_leaves_keys_out(attend):
    query, key, value = tensors((1, 2, 130, 1030, 24, 40))
    mask = torch.rand(130, 1030, generator=torch.Generator().manual_seed(1)) > 0.5
    assert error(attend(query, key, value, mask, 0.3), query, key, value, mask) < 3e-6


@pytest.mark.parametrize("attend", BACKENDS)
def test_a_float_mask_is_added(attend):
    query, key, value = tensors((1, 2, 130, 1030, 24, 40))
    mask = torch.randn(1, 1, 1, 1030, generator=torch.Generator().manual_seed(1))
    assert error(attend(query, key, value, mask, 0.3), query, key, value, mask.double()) < 3e-6


def test_large_scores_do_not_overflow():
    query, key, value = tensors((1, 1, 200, 1024, 16, 16))
    assert ops.attend(1e3 * query, 1e3 * key, value).isfinite().all()


def test_the_default_scale_is_that_of_the_width():
    query, key, value = tensors((1, 2, 20, 30, 16, 8))
    assert torch.equal(ops.attend(query, key, value), ops.attend(query, key, value, None, 16**-0.5))


def test_products_of_queries_with_keys_and_of_weights_with_values_are_counted():
    with FlopCounterMode(display=False) as counter:
        ops.attend(*tensors((2, 3, 20, 30, 16, 8)))
    assert counter.get_total_flops() == 2 * 2 * 3 * 20 * 30 * (16 + 8)
