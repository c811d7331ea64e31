"""Names of operators and the classes they fall in; masks at the resolution of an output."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from sige.runs.metrics import error
from sige.runs.metrics.time_share import CLASSES, _class_of, _of_kernels, classify


@pytest.mark.parametrize(
    "operator, group",
    [
        pytest.param(operator, group, id=operator)
        for operator, group in [
            ("aten::mkldnn_convolution", "conv"),
            ("aten::conv2d", "conv"),
            ("aten::_convolution", "conv"),
            ("aten::addmm", "gemm"),
            ("aten::linear", "gemm"),
            ("aten::mm", "gemm"),
            ("aten::bmm", "gemm"),
            ("aten::native_group_norm", "norm"),
            ("aten::index_select", "gather_scatter"),
            ("aten::index_copy_", "gather_scatter"),
            ("aten::copy_", "gather_scatter"),
            ("aten::cat", "gather_scatter"),
            ("aten::upsample_nearest2d", "gather_scatter"),
            ("aten::silu_", "pointwise"),
            ("aten::add", "pointwise"),
            ("aten::mul", "pointwise"),
            ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
            ("aten::_softmax", "attention"),
            ("aten::constant_pad_nd", "gather_scatter"),
            ("aten::sum", "pointwise"),
            ("aten::view", "other"),
            ("aten::empty", "other"),
            ("sige::gather_rows", "gather_scatter"),
            ("sige::scatter_rows_", "gather_scatter"),
            ("sige::exchange_rows_", "gather_scatter"),
            ("sige::conv_rows", "conv"),
            ("sige::update_statistics_", "norm"),
            ("sige::conv_quads", "conv"),
            ("sige::conv_narrow", "conv"),
            ("sige::conv_rows_bfloat16", "conv"),
            ("sige::map_statistics", "norm"),
            ("sige::activate_rows_bfloat16", "pointwise"),
            ("aten::expand", "other"),
            ("product", "conv"),
            ("thin_product", "conv"),
            ("_project", "gemm"),
            ("_normalize", "norm"),
            ("_activate", "pointwise"),
        ]
    ],
)
def test_class_of_an_operator(operator, group):
    assert classify(operator) == group


def test_every_class_is_known():
    assert {classify(name) for name in ("aten::conv2d", "aten::unheard_of")} <= set(CLASSES)


@pytest.mark.parametrize(
    "calls, group",
    [
        pytest.param(["sige::conv_rows", "aten::addmm"], "conv", id="product-of-a-convolution"),
        pytest.param(["sige::conv_rows", "aten::index_select"], "gather_scatter", id="gathering-of-a-convolution"),
        pytest.param(["sige::update_statistics_", "aten::sum"], "norm", id="sum-of-a-norm"),
        pytest.param(["sige::linear_rows", "aten::linear", "aten::addmm"], "gemm", id="linear"),
    ],
)
def test_what_an_operator_does_inside_is_part_of_it(calls, group):
    event = None
    for name in calls:
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert _class_of(event) == group


def test_a_kernel_on_a_gpu_is_counted_once():
    """The profiler tells it by itself, and with the operator that launched it; Triton's have none."""

    def event(name, device, duration=0.0, kernels=(), annotation=False):
        return SimpleNamespace(
            name=name, device_type=device, self_device_time_total=duration, kernels=kernels, cpu_parent=None,
            is_user_annotation=annotation,
        )  # fmt: skip

    host, gpu = DeviceType.CPU, DeviceType.CUDA
    cutlass = SimpleNamespace(name="cutlass_80", duration=3.0)
    found = _of_kernels(
        [
            event("aten::cudnn_convolution", host, 3.0, [cutlass]),
            event("cutlass_80", gpu, 3.0),
            event("product", gpu, 5.0),
            event("_normalize", gpu, 2.0),
            event("one step", gpu, 10.0, annotation=True),
        ]
    )
    assert found == dict.fromkeys(CLASSES, 0.0) | {"conv": 8.0, "norm": 2.0}


@pytest.mark.parametrize(
    "size, share",
    [pytest.param((4, 4), 1 / 16, id="latents"), pytest.param((16, 16), 1 / 64, id="the mask's own size")]
    + [pytest.param((32, 32), 1 / 64, id="a decoder's picture")],
)
def test_the_mask_is_brought_to_the_outputs_resolution(size, share):
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:6, 4:6] = True
    assert error.at_output(mask, torch.zeros(1, 3, *size)).float().mean() == share
