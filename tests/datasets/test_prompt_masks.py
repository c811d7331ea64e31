"""FISEdit's masks: unpacked, brought to the picture's size, and a clear word where they are not there."""

import numpy as np
import pytest
import torch

from sige.datasets import prompt_masks, registry
from sige.datasets.edit import MissingSample, UnknownEdit

REAL = [("fisedit-88", 0.04167), ("fisedit-3", 0.15527), ("fisedit-12", 0.30957)]


@pytest.fixture
def folder(tmp_path):
    """Three stand-in masks: id 3 holds one position at (4, 10), id 12 everything, id 7 nothing."""
    masks = np.zeros((3, 96, 96), bool)
    masks[0, 4, 10] = True
    masks[1] = True
    packed = np.packbits(masks.reshape(3, -1), axis=1)
    np.savez(tmp_path / prompt_masks.FILE, masks_packed=packed, index=np.array([3, 12, 7]), shape=np.array([96, 96]))
    return tmp_path


def boxed(size, top, left, side):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(
    "size, expected",
    [
        pytest.param(768, boxed(768, 32, 80, 8), id="768: 8x8 pixels a position"),
        pytest.param(512, boxed(512, 16, 48, 16), id="512: the coarser positions that touch it"),
        pytest.param(1536, boxed(1536, 64, 160, 16), id="1536: two finer positions a side"),
    ],
)
def test_a_position_becomes_pixels(folder, size, expected):
    assert torch.equal(prompt_masks.load("fisedit-3", folder=str(folder), size=size).mask, expected)


def test_the_edited_scene_differs_inside_the_mask_alone(folder):
    edit = prompt_masks.load("fisedit-3", folder=str(folder))
    assert torch.equal((edit.original != edit.edited).any(0), edit.mask)


def test_the_text_changes_too(folder):
    assert prompt_masks.load("fisedit-3", folder=str(folder), size=96).prompt


def test_all_masks_of_a_size_share_their_original(folder):
    first, second = (prompt_masks.load(f"fisedit-{id}", folder=str(folder), size=96) for id in (3, 12))
    assert torch.equal(first.original, second.original)


def test_an_empty_mask_changes_nothing(folder):
    edit = prompt_masks.load("fisedit-7", folder=str(folder), size=96)
    assert (edit.area, torch.equal(edit.original, edit.edited)) == (0, True)


def test_each_mask_has_its_own_digest(folder):
    assert len({prompt_masks.digest(f"fisedit-{id}", folder=str(folder)) for id in (3, 12, 7)}) == 3


@pytest.mark.parametrize("size", [pytest.param(100, id="no multiple of 8"), pytest.param(0, id="none")])
def test_a_size_without_latents_is_refused(folder, size):
    with pytest.raises(ValueError, match=f"^prompt edits have no size {size}: give a multiple of 8 pixels"):
        prompt_masks.load("fisedit-3", folder=str(folder), size=size)


def test_an_id_that_the_file_lacks_is_named(folder):
    with pytest.raises(MissingSample, match="^fisedit-4 is not in .*masks_3000.npz: it holds 3 masks"):
        prompt_masks.load("fisedit-4", folder=str(folder))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(MissingSample, match=rf"^fisedit-3 needs masks_3000.npz in .* of: {tmp_path}"):
        prompt_masks.load("fisedit-3", folder=str(tmp_path))


def test_the_environment_variable_is_looked_in_first(monkeypatch, tmp_path, folder):
    (tmp_path / prompt_masks.FOLDER).mkdir()
    target = tmp_path / prompt_masks.FOLDER / prompt_masks.FILE
    target.write_bytes((folder / prompt_masks.FILE).read_bytes())
    monkeypatch.setenv("SIGE_DATA", str(tmp_path))
    assert prompt_masks.file("fisedit-3") == target


@pytest.mark.parametrize("name", ["fisedit-3000", "fisedit-03", "fisedit-", "fisedit-a"])
def test_a_name_that_is_no_id_is_refused(name):
    with pytest.raises(UnknownEdit, match=rf"unknown prompt edit '{name}'; there are fisedit-<id from 0 to 2999>"):
        prompt_masks.load(name)


def test_the_registry_finds_them():
    assert registry.owner("fisedit-2999") is prompt_masks


@pytest.mark.parametrize("name, area", REAL)
def test_real_masks_have_the_published_areas(name, area):
    """The areas of the efficiency cases, wherever the masks are on this machine; without them the files above stand alone."""
    try:
        edit = prompt_masks.load(name)
    except MissingSample as error:
        assert name in str(error)
    else:
        assert (edit.size, edit.area) == ((768, 768), pytest.approx(area, abs=1e-5))
