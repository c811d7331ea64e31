"""Edit masks: made from two images, dilated, brought to other resolutions."""

import pytest
import torch

from sige import masks
from sige.errors import MaskError


def dot(height=9, width=9, y=4, x=4):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y, x] = True
    return mask


@pytest.mark.parametrize("radius", [0, 1, 2, 4])
def test_dilation_is_a_plus(radius):
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    plus = ((y == 4) & ((x - 4).abs() <= radius)) | ((x == 4) & ((y - 4).abs() <= radius))
    assert torch.equal(masks.dilate_cross(dot(), radius), plus)


def test_each_direction_starts_from_the_undilated_mask():
    assert masks.dilate_cross(dot(), 2).sum() == 9


def test_dilation_stops_at_the_border():
    assert masks.dilate_cross(dot(y=0, x=8), 3).sum() == 7


def test_dilation_wider_than_the_mask():
    assert masks.dilate_cross(dot(3, 3, 0, 0), 5).sum() == 5


def test_dilation_leaves_the_given_mask_alone():
    mask = dot()
    masks.dilate_cross(mask, 3)
    assert mask.sum() == 1


def test_dilation_of_a_batch_keeps_samples_apart():
    batch = torch.stack([dot(), torch.zeros(9, 9, dtype=torch.bool)])
    assert masks.dilate_cross(batch, 1).sum((1, 2)).tolist() == [5, 0]


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_box_dilation_is_a_square(radius):
    grown = masks.dilate_box(dot()[None], radius)[0]
    assert (int(grown.sum()), bool(grown[4 - radius, 4 + radius])) == ((2 * radius + 1) ** 2, True)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("change, marked", [(0.02, True), (-0.02, True), (0.005, False)])
def test_difference_in_any_channel(channel, change, marked):
    original = torch.zeros(3, 5, 6)
    edited = original.clone()
    edited[channel, 2, 3] += change
    found = masks.difference_mask(original, edited)
    assert (found.dtype, found.shape, bool(found[2, 3]), int(found.sum())) == (torch.bool, (5, 6), marked, int(marked))


def test_difference_of_exactly_eps_is_none():
    assert not masks.difference_mask(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5), eps=0.5).any()


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 4)], ids=["another size", "a batch"])
def test_difference_of_images_that_do_not_fit(shape):
    with pytest.raises(MaskError, match=r"images of shape .* give two of one shape \(C, H, W\)"):
        masks.difference_mask(torch.zeros(shape), torch.zeros(shape) if len(shape) == 4 else torch.zeros(3, 4, 4))


@pytest.mark.parametrize("size, smaller", [((8, 8), (4, 4)), ((33, 47), (17, 24)), ((33, 47), (5, 6))])
def test_reduced_cell_is_marked_where_any_pixel_is(size, smaller):
    for y in (0, size[0] // 2, size[0] - 1):
        for x in (0, size[1] // 3, size[1] - 1):
            reduced = masks.reduce_max(dot(*size, y, x)[None], *smaller)[0]
            assert reduced[y * smaller[0] // size[0], x * smaller[1] // size[1]]


def test_enlarged_mask_covers_the_pixels_of_its_cells():
    assert torch.equal(
        masks.reduce_max(dot(2, 2, 1, 0)[None], 4, 4)[0].nonzero()[[0, -1]], torch.tensor([[2, 0], [3, 1]])
    )


@pytest.mark.parametrize("size, half", [((8, 6), (4, 3)), ((33, 47), (17, 24))], ids=["even", "odd"])
def test_halving_keeps_the_mean(size, half):
    halved = masks.halve_bilinear(torch.full((2, *size), 0.3))
    assert (tuple(halved.shape), torch.allclose(halved, torch.full((2, *half), 0.3))) == ((2, *half), True)


def test_halving_of_even_sides_is_the_mean_of_four():
    assert masks.halve_bilinear(dot(4, 4, 1, 2)[None].float())[0].tolist() == [[0, 0.25], [0, 0]]


@pytest.mark.parametrize("value, marked", [(0.5, True), (0.31, True), (0.3, False), (0.2, False)])
def test_threshold_where_the_edit_is_large(value, marked):
    values = torch.tensor([[[1.0, value]]])
    assert masks.binarize(values, 0.3)[0, 0].tolist() == [True, marked]


def test_threshold_gives_way_to_a_faint_edit():
    assert masks.binarize(torch.tensor([[[0.1, 0.05]]]), 0.3)[0, 0].tolist() == [True, False]


def test_threshold_is_each_samples_own():
    values = torch.tensor([[[1.0, 0.1]], [[0.1, 0.0]]])
    assert masks.binarize(values, 0.3)[:, 0].tolist() == [[True, False], [True, False]]


def test_nothing_stays_nothing():
    assert not masks.binarize(torch.zeros(2, 4, 4), 0.3).any()


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
def test_checked_mask_has_a_batch(shape):
    assert masks.check_mask(torch.ones(shape, dtype=torch.bool)).shape == (2 if len(shape) == 3 else 1, 4, 5)
