"""Joint sequences: which of their positions are active, and how their rows are put together and taken apart."""

import pytest
import torch

from sige.active_set import ActiveSet
from sige.joint_set import joint_set, text_set

# Two samples of a 2x3 map: positions 1 and 4 of the first, 0 of the second.
MASK = torch.tensor([[[0, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)


@pytest.fixture
def image():
    return ActiveSet.from_tiles(MASK, (1, 1), 2, 3)


def test_text_first(image):
    assert joint_set((2, image)).index.tolist() == [0, 1, 3, 6, 8, 9, 10]


def test_text_last(image):
    assert joint_set((image, 2)).index.tolist() == [1, 4, 6, 7, 8, 14, 15]


def test_text_around(image):
    assert joint_set((1, image, 1)).index.tolist() == [0, 2, 5, 7, 8, 9, 15]


def test_rows_of_each_sample(image):
    assert joint_set((2, image)).segments == [(0, 4), (4, 7)]


def test_rows_of_each_part(image):
    assert joint_set((2, image)).places == [[(0, 2), (4, 6)], [(2, 4), (6, 7)]]


def test_size(image):
    assert joint_set((2, image)).shape == (2, 1, 8)


def test_full_parts_make_a_full_set():
    joint = joint_set((2, ActiveSet.everything(2, 2, 3)))
    assert (joint.full, joint.index, joint.count) == (True, None, 16)


def test_full_map_beside_forgotten_text_is_not_full():
    image = ActiveSet.everything(1, 2, 3)
    assert joint_set((text_set(image, 2, False), image)).index.tolist() == [2, 3, 4, 5, 6, 7]


def test_made_once(image):
    assert joint_set((2, image)) is joint_set((2, image))


def test_other_text_other_set(image):
    assert joint_set((2, image)) is not joint_set((3, image))


def test_text_sets_are_made_once(image):
    assert text_set(image, 2, True) is text_set(image, 2, True)


@pytest.mark.parametrize("batch", [1, 2])
def test_parts_come_back_from_the_joined_rows(batch):
    image = ActiveSet.from_tiles(MASK[:batch], (1, 1), 2, 3)
    joint = joint_set((2, image))
    text, rows = torch.randn(batch * 2, 4), torch.randn(image.count, 4)
    joined = joint.join([text, rows])
    assert (torch.equal(joint.part_rows(joined, 0, 1), text), torch.equal(joint.part_rows(joined, 1, 2), rows)) == (
        True,
        True,
    )


def test_rows_lie_where_the_index_says(image):
    joint = joint_set((2, image))
    sequence = torch.arange(16).view(2, 8)
    text, tokens = sequence[:, :2].reshape(-1, 1), sequence[:, 2:].reshape(-1, 1)
    assert joint.join([text, tokens[image.index]]).flatten().tolist() == joint.index.tolist()


@pytest.mark.parametrize("device", ["meta"])
def test_without_data_the_numbers_stay(image, device):
    moved = joint_set((2, image.on(device)))
    assert (moved.device.type, moved.count, moved.segments) == ("meta", 7, joint_set((2, image)).segments)


def test_without_data_the_mask_is_still_known(image):
    assert torch.equal(joint_set((2, image.on("meta"))).mask(), joint_set((2, image)).mask())


def test_without_data_a_full_map_stands_beside_forgotten_text():
    image = ActiveSet.everything(1, 2, 3, "meta")
    joint = joint_set((text_set(image, 2, False), image))
    assert (joint.device.type, joint.count, joint.mask().flatten().tolist()) == ("meta", 6, [False] * 2 + [True] * 6)
