"""Sample edits: read from a folder, with the paper's mask, and a clear word where they are not there."""

import numpy as np
import pytest
import torch
from PIL import Image

from sige.datasets import samples
from sige.datasets.edit import MissingSample, UnknownEdit

AREAS = {"church-432": 0.0120, "church-423": 0.1545, "toy-mask": 0.1545}


@pytest.fixture
def folder(tmp_path):
    """A pair of pictures under the name of a sample: one white pixel differs at (20, 30)."""
    before = np.full((64, 64, 3), 100, np.uint8)
    after = before.copy()
    after[20, 30] = 255
    Image.fromarray(before).save(tmp_path / "church-432-original.png")
    Image.fromarray(after).save(tmp_path / "church-432-edited.png")
    return tmp_path


def test_pixels_are_scaled_to_minus_one_to_one(folder):
    edit = samples.load("church-432", folder=str(folder))
    assert edit.edited[:, 20, 30].tolist() == [1, 1, 1]
    assert edit.original[0, 0, 0].item() == pytest.approx(100 / 127.5 - 1)


def test_the_mask_is_a_plus_around_what_differs(folder):
    mask = samples.load("church-432", folder=str(folder), dilation=5).mask
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[15:26, 30] = expected[20, 25:36] = True
    assert torch.equal(mask, expected)


def test_the_digest_follows_the_files(folder):
    before = samples.digest("church-432", folder=str(folder))
    Image.new("RGB", (64, 64)).save(folder / "church-432-edited.png")
    assert samples.digest("church-432", folder=str(folder)) != before


def test_a_missing_sample_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(MissingSample, match=rf"church-432 needs church-432-original.png and .* of: {tmp_path}"):
        samples.load("church-432", folder=str(tmp_path))


def test_the_environment_variable_is_looked_in_first(monkeypatch, tmp_path, folder):
    (tmp_path / "data").mkdir()
    target = tmp_path / "data" / samples.FOLDER
    target.mkdir()
    for path in folder.glob("*.png"):
        (target / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("SIGE_DATA", str(tmp_path / "data"))
    assert samples.files("church-432")[0].parent == target


def test_a_folder_in_the_checkout_is_looked_in_without_the_variable(monkeypatch):
    monkeypatch.delenv("SIGE_DATA", raising=False)
    first, second = samples.search_path()
    assert (first.parts[-2:], second.parts[-3:]) == (("data", "sige-samples"), ("shared", "data", "sige-samples"))


def test_another_name_is_refused():
    with pytest.raises(UnknownEdit, match="unknown church sample 'church-1'; there are church-423, church-432, toy"):
        samples.load("church-1")


def test_real_samples_have_the_papers_areas():
    """The printed areas, wherever the samples are on this machine; without them the pictures above stand alone."""
    for name, area in AREAS.items():
        try:
            edit = samples.load(name)
        except MissingSample as error:
            assert name in str(error)
        else:
            assert edit.area == pytest.approx(area, abs=5e-5)


def test_real_samples_at_128_have_the_reference_codes_areas():
    """Shrunk as its 128x128 model was fed, wherever the samples are on this machine."""
    for name, area in (("church-432", 0.0117), ("church-423", 0.1435)):
        try:
            edit = samples.load(name, eps=0.02, dilation=2, size=128)
        except MissingSample as error:
            assert name in str(error)
        else:
            assert edit.area == pytest.approx(area, abs=5e-5)


@pytest.mark.parametrize("size, got", [pytest.param(32, 32, id="shrunk"), pytest.param(128, 64, id="not enlarged")])
def test_a_picture_larger_than_the_model_takes_is_shrunk(folder, size, got):
    assert samples.load("church-432", folder=str(folder), size=size).size == (got, got)
