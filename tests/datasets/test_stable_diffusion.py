"""SIGE's edits for Stable Diffusion: read from a folder, masks as published, and a clear word where they are not there."""

import numpy as np
import pytest
import torch
from PIL import Image

from sige.datasets import registry, stable_diffusion
from sige.datasets.edit import MissingSample, UnknownEdit

REAL = [
    pytest.param("sdedit-0", {"dilation": 0}, 0.0172, id="sdedit-0 as printed"),
    pytest.param("sdedit-0", {}, 0.0202, id="sdedit-0 dilated"),
    pytest.param("sdedit-1", {"dilation": 0}, 0.0278, id="sdedit-1 as printed"),
    pytest.param("sdedit-1", {}, 0.0371, id="sdedit-1 dilated"),
    pytest.param("inpaint-0", {}, 0.1160, id="inpaint-0"),
]


@pytest.fixture
def folder(tmp_path):
    """Stand-in files: one stroke pixel at (20, 30) of 64x128, and a hole of 8x16."""
    before = np.full((64, 128, 3), 100, np.uint8)
    after = before.copy()
    after[20, 30] = 255
    after[40, 60] = 102  # a difference of 0.0157: below the threshold
    hole = np.zeros((64, 128), bool)
    hole[8:16, 32:48] = True
    for name in ("sdedit-0", "inpaint-0"):
        Image.fromarray(before).save(tmp_path / f"{name}-original.png")
    Image.fromarray(after).save(tmp_path / "sdedit-0-edited.png")
    np.savez(tmp_path / "masks.npz", inpaint_0=hole)
    return tmp_path


def plus(row, column, radius, size=(64, 128)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[row - radius : row + radius + 1, column] = mask[row, column - radius : column + radius + 1] = True
    return mask


def test_a_stroke_edits_mask_is_a_plus_of_five_pixels(folder):
    assert torch.equal(stable_diffusion.load("sdedit-0", folder=str(folder)).mask, plus(20, 30, 5))


def test_a_lower_threshold_sees_more(folder):
    mask = stable_diffusion.load("sdedit-0", folder=str(folder), eps=0.01, dilation=0).mask
    assert mask.nonzero().tolist() == [[20, 30], [40, 60]]


def test_dilations_follow_each_other(folder):
    mask = stable_diffusion.load("sdedit-0", folder=str(folder), dilation=[1, 2]).mask
    expected = plus(20, 30, 3) | plus(19, 30, 2) | plus(21, 30, 2) | plus(20, 29, 2) | plus(20, 31, 2)
    assert torch.equal(mask, expected)


def test_the_in_painting_mask_is_used_as_it_is(folder):
    edit = stable_diffusion.load("inpaint-0", folder=str(folder))
    assert (edit.mask.sum().item(), edit.mask[8:16, 32:48].all().item()) == (128, True)


def test_the_in_painted_picture_differs_inside_the_mask_alone(folder):
    edit = stable_diffusion.load("inpaint-0", folder=str(folder))
    assert torch.equal((edit.original != edit.edited).any(0), edit.mask)


def test_the_digest_follows_the_files(folder):
    before = stable_diffusion.digest("inpaint-0", folder=str(folder))
    np.savez(folder / "masks.npz", inpaint_0=np.ones((64, 128), bool))
    assert stable_diffusion.digest("inpaint-0", folder=str(folder)) != before


def test_a_missing_sample_says_what_and_where(tmp_path):
    with pytest.raises(
        MissingSample, match=rf"^inpaint-0 needs inpaint-0-original.png and masks.npz in .* of: {tmp_path}"
    ):
        stable_diffusion.load("inpaint-0", folder=str(tmp_path))


def test_another_name_is_refused():
    with pytest.raises(UnknownEdit, match="unknown Stable Diffusion sample 'sdedit-7'; there are inpaint-0, sdedit-0"):
        stable_diffusion.load("sdedit-7")


@pytest.mark.parametrize("name", ["sdedit-0", "sdedit-1", "inpaint-0"])
def test_the_registry_finds_them(name):
    assert registry.owner(name) is stable_diffusion


@pytest.mark.parametrize("name, options, area", REAL)
def test_real_samples_have_the_published_areas(name, options, area):
    """The printed areas, wherever the samples are on this machine; without them the files above stand alone."""
    try:
        edit = stable_diffusion.load(name, **options)
    except MissingSample as error:
        assert name in str(error)
    else:
        assert (edit.size, edit.area) == ((512, 1024), pytest.approx(area, abs=5e-5))
