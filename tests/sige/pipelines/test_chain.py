"""A session's whole life: generate, edit, edit again, undo, leave it on disk, take it up again; many edits in a row."""

import errno

import pytest
import torch

import sige.pipelines
from sige.errors import BudgetError, RecordingError, StorageError
from sige.runs.models import text_to_image
from sige.session import Session

STEPS = 3
OLD, NEW, THIRD = "a dog on a sofa", "a cat on a sofa", "a cat on a red sofa"


@pytest.fixture
def edited(make_session):
    """A session with a committed edit by prompt."""
    session = make_session()
    session.generate(OLD, seed=3, steps=STEPS, attention_control=2)
    session.edit(NEW, mask_steps=(1, 2), attention_control=True)
    session.commit()
    return session


def test_generate_edit_edit_undo_reopen(edited, where, tmp_path):
    first = edited.original
    second = edited.edit(THIRD, mask=where)
    edited.undo()
    edited.save(tmp_path)
    again = sige.pipelines.reopen(tmp_path, edited.pipe)
    assert torch.equal(again.original.image, first.image)
    assert torch.equal(again.edit(THIRD, mask=where).image, second.image)


def test_reopened_session_finds_the_same_mask(edited, tmp_path):
    expected = edited.edit(THIRD, mask_steps=(1, 2), attention_control=True)
    edited.undo()
    edited.save(tmp_path)
    found = sige.pipelines.reopen(tmp_path, edited.pipe).edit(THIRD, mask_steps=(1, 2), attention_control=True)
    assert torch.equal(found.mask, expected.mask) and torch.equal(found.image, expected.image)


def test_reopened_image_session_encodes_sparsely(make_session, where, tmp_path):
    session = make_session()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    session.generate(OLD, steps=STEPS, image=picture, strength=0.5)
    session.save(tmp_path)
    painted = torch.where(where.repeat_interleave(4, 0).repeat_interleave(4, 1), picture + 0.3, picture)
    again = sige.pipelines.reopen(tmp_path, session.pipe)
    assert torch.equal(again.edit(image=painted).image, session.edit(image=painted).image)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_reopened_session_has_the_schedulers_history(make_session, where, tmp_path, scheduler):
    session = make_session(scheduler=scheduler)
    session.generate(OLD, steps=STEPS)
    session.save(tmp_path)
    again = sige.pipelines.reopen(tmp_path, session.pipe)
    assert torch.equal(again.edit(NEW, mask=where).image, session.edit(NEW, mask=where).image)


def test_memory_budget_changes_no_bit(make_session, where, tmp_path):
    free = make_session()
    free.generate(OLD, steps=STEPS)
    tight = make_session(memory_budget=2 * free.least_budget, state_folder=tmp_path)
    tight.generate(OLD, steps=STEPS)
    for session in (free, tight):
        session.edit(NEW, mask_steps=(1, 1))
        session.commit()
    assert tight.state_tiers()["disk"] > 0
    assert torch.equal(tight.edit(THIRD, mask=where).image, free.edit(THIRD, mask=where).image)


def test_edit_that_waits_is_not_saved(edited, where, tmp_path):
    edited.edit(THIRD, mask=where)
    with pytest.raises(RecordingError, match="the last edit is neither committed nor taken back"):
        edited.save(tmp_path)


def test_other_autoencoder(edited, tmp_path):
    edited.save(tmp_path)
    pipe = text_to_image.small_pipeline(seed=1)
    pipe.unet = edited.pipe.unet
    with pytest.raises(StorageError, match="load it with the models that it was recorded with"):
        sige.pipelines.reopen(tmp_path, pipe)


def test_folder_of_a_models_session(make_session, tmp_path):
    session = make_session()
    with session.record():
        session.model(torch.randn(1, 4, 16, 16), 5, torch.randn(1, 77, 64))
    session.save(tmp_path)
    with pytest.raises(StorageError, match="holds the recording of a model, no generated picture"):
        sige.pipelines.reopen(tmp_path, session.pipe)
    assert Session.load(tmp_path, session.pipe).recorded_steps == 1


def test_pictures_are_not_loaded_with_the_model_alone(edited, tmp_path):
    edited.save(tmp_path)
    with pytest.raises(
        StorageError, match="holds a session on a StableDiffusionPipeline: load it with such a pipeline"
    ):
        Session.load(tmp_path, edited.pipe.unet)


def test_truncated_file_is_named(edited, tmp_path):
    edited.save(tmp_path)
    victim = sorted(tmp_path.glob("step-0001-*"))[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(StorageError, match=f"{victim.name} is truncated"):
        sige.pipelines.reopen(tmp_path, edited.pipe)


def in_a_row(session, count):
    """Pictures of ``count`` edits in a row, small rectangles that wander and overlap."""
    session.generate(OLD, seed=3, steps=2)
    pictures = []
    for number in range(count):
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[2 + number : 7 + number, 3:9] = True
        session.edit(f"a dog on a sofa with {number} hats", mask=mask)
        session.commit()
        pictures.append(session.original.image)
    return pictures


def test_edits_in_a_row_stay_near_dense_ones_and_nearer_with_refresh(make_session, distance):
    sparse, refreshed, dense = (
        in_a_row(make_session(**settings), 4) for settings in ({}, {"refresh_every": 1}, {"policy": "dense"})
    )
    assert all(distance(mine, other) < 0.15 for mine, other in zip(sparse, dense, strict=True))
    assert distance(refreshed[3], dense[3]) < 0.6 * distance(sparse[3], dense[3])


def test_refresh_makes_the_recording_dense_again(make_session, distance):
    session = make_session()
    in_a_row(session, 3)
    call = {name: value for name, value in session._steps[1].inputs.items() if value is not None}

    def error():
        with torch.no_grad():
            return distance(session._steps[1].output[0], session.model(**call)[0])

    before = error()
    session.refresh()
    assert error() < 1e-5 < before


def test_refresh_comes_after_every_few_commits(make_session, monkeypatch):
    session, seen = make_session(refresh_every=2), []
    monkeypatch.setattr(session, "refresh", lambda: seen.append(session._commits) or 0)
    in_a_row(session, 4)
    assert seen == [2, 4]


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_refresh_every_is_a_number_of_commits(make_session, value):
    with pytest.raises(RecordingError, match="refresh_every=.*: give a whole number of at least 1"):
        make_session(refresh_every=value)


def test_closed_session_forgets(edited):
    edited.close()
    assert edited.state_bytes() == {}
    with pytest.raises(RecordingError, match="nothing is generated yet"):
        edited.edit("a cat")


def test_full_disk_keeps_the_earlier_save(edited, where, tmp_path, monkeypatch):
    edited.save(tmp_path)
    expected = edited.original.image
    edited.edit(THIRD, mask=where)
    edited.commit()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sige.state.files.os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            edited.save(tmp_path)
    assert torch.equal(sige.pipelines.reopen(tmp_path, edited.pipe).original.image, expected)
    assert edited.edit(OLD, mask=where).calls == STEPS


def test_budget_too_small_for_a_step_keeps_the_picture(make_session, where):
    session = make_session()
    picture = session.generate(OLD, steps=STEPS)
    session._budget = (1000, None)
    with pytest.raises(BudgetError, match="memory_budget=1000 bytes does not hold one step"):
        session.generate(NEW, steps=STEPS)
    assert session.original is picture and session.edit(NEW, mask=where).calls == STEPS
