"""Generated edits: of the asked area, on every size, the same for the same seed, changed inside their mask only."""

import pytest
import torch

from sige.datasets import shapes, synthetic
from sige.datasets.edit import UnknownEdit
from sige.datasets.scene import scene

SIZES = [
    pytest.param((256, 256), id="256x256"),
    pytest.param((64, 64), id="64x64"),
    pytest.param((96, 160), id="96x160"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", shapes.KINDS)
@pytest.mark.parametrize("area", [pytest.param(area, id=f"{area:g}%") for area in synthetic.AREAS])
def test_an_edit_covers_the_asked_area(kind, area, size):
    edit = synthetic.load(f"{kind}-{area:g}", *size)
    pixels = edit.mask.numel()
    # Within 2 % of the area, or one pixel where that is more.
    assert edit.area == pytest.approx(area / 100, abs=max(0.02 * area / 100, 1 / pixels))


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name) for name in ("brush-5", "rectangle-30", "scattered-1.2", "brighten-30")]
)
def test_an_edit_changes_nothing_outside_its_mask(name):
    edit = synthetic.load(name, 64, 64)
    changed = (edit.original != edit.edited).any(0)
    assert not (changed & ~edit.mask).any()


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name) for name in ("brush-5", "rectangle-30", "scattered-15.5", "brighten-30")]
)
def test_an_edit_changes_what_is_inside_its_mask(name):
    edit = synthetic.load(name, 64, 64)
    changed = (edit.original != edit.edited).any(0)
    assert (changed & edit.mask).sum() > 0.95 * edit.mask.sum()


def test_pictures_are_float_maps_in_range():
    edit = synthetic.load("brush-5", 64, 96)
    assert edit.original.shape == edit.edited.shape == (3, 64, 96)
    assert edit.original.dtype == edit.edited.dtype == torch.float32
    assert max(edit.original.abs().max(), edit.edited.abs().max()) <= 1
    assert edit.mask.dtype == torch.bool


def test_a_brightened_region_is_brighter_by_the_asked_amount():
    edit = synthetic.load("brighten-30", 64, 64, brightness=2.0)
    torch.testing.assert_close(edit.edited[:, edit.mask], edit.original[:, edit.mask] + 2)


def test_the_same_seed_gives_the_same_edit():
    assert torch.equal(
        synthetic.load("scattered-5", 64, 64, seed=3).edited, synthetic.load("scattered-5", 64, 64, seed=3).edited
    )


def test_another_seed_gives_another_mask():
    assert not torch.equal(
        synthetic.load("brush-5", 64, 64, seed=1).mask, synthetic.load("brush-5", 64, 64, seed=2).mask
    )


def test_edits_of_one_seed_share_their_original():
    assert torch.equal(synthetic.load("brush-5", 64, 64).original, synthetic.load("rectangle-30", 64, 64).original)


def test_a_rectangle_is_a_rectangle():
    mask = synthetic.load("rectangle-9.4").mask
    rows, columns = mask.any(1), mask.any(0)
    assert mask.sum() == rows.sum() * columns.sum()


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name) for name in ("brush-0", "brush-101", "brush", "spiral-5", "brush--5")]
)
def test_a_name_that_does_not_read_as_kind_and_area_is_refused(name):
    with pytest.raises(UnknownEdit, match=r"is not <kind>-<per cent, above 0 and at most 100>"):
        synthetic.load(name)


def test_a_scene_below_eight_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 8x8 pixels, not 4x64"):
        scene(4, 64)
