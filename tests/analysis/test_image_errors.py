"""Image errors against values worked out by hand."""

import math

import pytest
import torch

from sige.analysis.image_errors import max_abs_error, psnr, relative_l2, relative_l2_in_mask

ONES = torch.ones(1, 3, 4, 4)


def test_max_abs_error_sees_one_pixel():
    output = ONES.clone()
    output[0, 1, 2, 3] = 0.25
    assert max_abs_error(output, ONES) == 0.75


def test_relative_l2_of_ten_percent_is_ten_percent():
    assert relative_l2(1.1 * ONES, ONES) == pytest.approx(0.1, rel=1e-6)


def test_equal_maps_have_no_error_even_where_zero():
    assert relative_l2(torch.zeros(2), torch.zeros(2)) == 0.0


def test_error_against_zero_is_infinite():
    assert relative_l2(torch.ones(2), torch.zeros(2)) == math.inf


def test_psnr_by_its_formula():
    assert psnr(ONES - 0.2, ONES, data_range=2.0) == pytest.approx(20.0, abs=1e-5)


def test_psnr_of_equal_maps_is_infinite():
    assert psnr(ONES, ONES, data_range=2.0) == math.inf


def test_mask_counts_only_its_positions():
    output, mask = ONES.clone(), torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    output[..., 0, 0] = 1.5
    output[..., 3, 3] = 100.0
    assert relative_l2_in_mask(output, ONES, mask) == pytest.approx(0.5)


def test_each_sample_may_have_its_own_mask():
    output, mask = torch.ones(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    output[1, :, 0, 0] = 9.0
    assert relative_l2_in_mask(output, torch.ones(2, 3, 4, 4), mask) == 0.0


def test_half_precision_is_summed_in_double():
    half = torch.full((1, 1, 256, 256), 300.0, dtype=torch.float16)
    assert relative_l2(half, half * 2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(
            lambda: relative_l2(ONES, ONES[..., :2]), "output has shape .* reference .* must be equal", id="shapes"
        ),
        pytest.param(
            lambda: psnr(ONES, ONES * math.nan, data_range=2.0), "the reference holds NaN", id="nan-reference"
        ),
        pytest.param(lambda: max_abs_error(ONES / 0, ONES), "the output holds NaN or infinite", id="infinite-output"),
        pytest.param(
            lambda: psnr(ONES, ONES, data_range=0), "data_range must be a finite number above 0, got 0", id="range"
        ),
        pytest.param(lambda: max_abs_error(ONES[:0], ONES[:0]), "nothing to compare", id="empty"),
        pytest.param(
            lambda: relative_l2_in_mask(ONES, ONES, torch.ones(4, 4)),
            "must be bool, got torch.float32",
            id="mask-dtype",
        ),
        pytest.param(
            lambda: relative_l2_in_mask(ONES, ONES, torch.ones(2, 2, dtype=torch.bool)),
            "mask has shape \\(2, 2\\), expected \\(4, 4\\) or \\(1, 4, 4\\)",
            id="mask-shape",
        ),
        pytest.param(
            lambda: relative_l2_in_mask(ONES, ONES, torch.zeros(4, 4, dtype=torch.bool)),
            "the mask is empty",
            id="empty-mask",
        ),
        pytest.param(
            lambda: relative_l2_in_mask(ONES.flatten(), ONES.flatten(), torch.ones(4, 4, dtype=torch.bool)),
            "needs maps \\(B, C, H, W\\)",
            id="not-a-map",
        ),
    ],
)
def test_refuses(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
