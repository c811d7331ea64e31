"""Text-to-image sessions: generate, edit inside a mask, commit, undo; exactness where an edit must be exact."""

import dataclasses

import pytest
import torch

import sige
from sige.errors import MaskError, ModelError, RecordingError
from sige.pipelines.session import PipelineSession

STEPS = 4
OLD, NEW, THIRD = "a dog on a sofa", "a cat on a sofa", "a cat on a red sofa"

SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
STOCHASTIC = ("EulerAncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler")
WHOLE = torch.ones(16, 16, dtype=torch.bool)


@pytest.fixture(scope="module", params=[pytest.param(name, id=name) for name in SCHEDULERS + STOCHASTIC])
def scheduled(request, make_session):
    """A session of each scheduler with the picture of the old prompt; nothing is committed."""
    session = make_session(scheduler=request.param)
    session.generate(OLD, seed=3, steps=STEPS)
    return session


def test_session_on_a_pipeline_is_a_session(make_pipe):
    session = sige.Session(make_pipe())
    assert isinstance(session, PipelineSession) and isinstance(session, sige.Session)


def test_generated_picture_is_the_pipelines_own(make_session, dense, distance):
    session = make_session()
    picture = session.generate(OLD, seed=3, steps=STEPS)
    assert distance(picture.image, dense(session.pipe, OLD, seed=3)) < 1e-4


def test_picture_tells_calls_macs_and_seconds(shared):
    picture = shared.original
    assert picture.calls == 5 and picture.macs == picture.dense_macs > 0
    assert set(picture.seconds) == {"unet", "decode", "total"} and picture.image.shape == (1, 3, 64, 64)


def test_full_mask_edit_is_the_dense_pipeline(scheduled, dense, distance):
    edited = scheduled.edit(NEW, mask=WHOLE)
    reference = dense(scheduled.pipe, NEW, seed=3)
    assert distance(edited.image, reference) < 1e-3
    assert distance(scheduled.original.image, reference) > 1e-2  # the prompts differ visibly


def test_outside_the_mask_every_step_is_the_recording_bit_for_bit(scheduled, where):
    recorded = scheduled.trajectory
    scheduled.edit(NEW, mask=where)
    trajectory = scheduled._pending[0].trajectory
    assert trajectory is not recorded and len(trajectory) == len(recorded) == STEPS
    for step in range(STEPS):
        now, was = trajectory.latents[step], recorded.latents[step]
        assert torch.equal(now[:, :, ~where], was[:, :, ~where]) and not torch.equal(now[:, :, where], was[:, :, where])
        for place, tensor in trajectory.history[step].items():
            assert torch.equal(tensor[:, :, ~where], recorded.history[step][place][:, :, ~where])


@pytest.mark.parametrize("policy", [pytest.param(name, id=name) for name in ("incremental", "fisedit", "pixel")])
def test_full_mask_edit_is_dense_under_policies_with_exact_norms(make_pipe, dense, distance, policy):
    policy = dataclasses.replace(sige.policy(policy), min_resolution=4, upsample_min_source=4, norm="incremental")
    session = sige.Session(make_pipe(), policy)
    session.generate(OLD, seed=3, steps=STEPS)
    edited = session.edit(NEW, mask=torch.ones(16, 16, dtype=torch.bool))
    assert distance(edited.image, dense(session.pipe, NEW, seed=3)) < 1e-3


def test_schedulers_history_is_remembered(make_session):
    session = make_session(scheduler="DPMSolverMultistepScheduler")
    session.generate(OLD, steps=STEPS)
    assert ("model_outputs", 1) in session.trajectory.history[-1]


def test_edit_costs_less_than_the_dense_run(shared, where):
    edited = shared.edit(NEW, mask=where)
    assert edited.macs < 0.6 * edited.dense_macs and edited.effect.steps == edited.calls == 5
    assert [step[:2] for step in edited.steps] == [(number, "sparse") for number in range(5)]


def test_edit_is_near_the_dense_run_with_latents_put_back(make_session, where, distance):
    edits = []
    for policy in ("incremental", "dense"):
        session = make_session(policy=policy)
        session.generate(OLD, steps=STEPS)
        edits.append(session.edit(NEW, mask=where).latents[:, :, where])
    assert distance(*edits) < 0.15


@pytest.mark.parametrize(
    "scale", [pytest.param(1, id="latents"), pytest.param(2, id="between"), pytest.param(4, id="picture")]
)
def test_masks_are_given_at_any_resolution_from_latents_to_picture(shared, where, scale):
    fine = where.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    assert torch.equal(shared.edit(NEW, mask=fine).mask[0], where)


def test_empty_mask_is_the_recorded_picture_at_no_cost(shared):
    picture = shared.original
    with pytest.warns(UserWarning, match="the edit mask is empty"):
        edited = shared.edit(NEW, mask=torch.zeros(16, 16, dtype=torch.bool))
    assert torch.equal(edited.image, picture.image) and torch.equal(edited.latents, picture.latents)
    assert edited.calls == edited.macs == 0


def test_next_edit_builds_on_a_committed_one(make_session, where, elsewhere):
    session = make_session()
    session.generate(OLD, steps=STEPS)
    first = session.edit(NEW, mask=where)
    session.commit()
    second = session.edit(THIRD, mask=elsewhere)
    assert torch.equal(second.latents[:, :, ~elsewhere], first.latents[:, :, ~elsewhere])
    assert torch.equal(session.original.image, first.image)


def test_edit_that_is_not_committed_is_taken_back_by_the_next(shared, where, elsewhere):
    alone = shared.edit(THIRD, mask=elsewhere)
    shared.edit(NEW, mask=where)
    assert torch.equal(shared.edit(THIRD, mask=elsewhere).image, alone.image)


def test_undo_gives_the_same_edit_again(shared, where):
    picture = shared.original
    first = shared.edit(NEW, mask=where)
    shared.undo()
    assert shared.original is picture
    assert torch.equal(shared.edit(NEW, mask=where).image, first.image)


def test_committed_edit_repeated_changes_nothing(make_session, where):
    session = make_session()
    session.generate(OLD, steps=STEPS)
    first = session.edit(NEW, mask=where)
    session.commit()
    with pytest.warns(UserWarning, match="neither prompt nor picture changed"):
        again = session.edit(NEW, mask=where)
    assert torch.equal(again.image, first.image) and again.calls == 0


@pytest.mark.parametrize("verb", ["commit", "undo"])
def test_nothing_to_commit_or_undo(shared, verb):
    with pytest.raises(RecordingError, match=f"there is no edit to {verb}"):
        getattr(shared, verb)()


def test_before_generate_a_session_records_the_unet(make_session, where):
    session = make_session()
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)
    with session.record():
        session.model(x, 5, text)
    with session.edit(where) as effect:
        session.model(torch.where(where, x + 1, x), 5, text)
    assert effect.steps == 1


def test_edit_before_generate(make_session):
    with pytest.raises(RecordingError, match="nothing is generated yet"):
        make_session().edit("a cat")


def test_mask_of_another_resolution(shared):
    with pytest.raises(
        MaskError, match=r"the edit mask is \(20, 20\), the latents are \(16, 16\) and the picture \(64, 64\)"
    ):
        shared.edit(NEW, mask=torch.ones(20, 20, dtype=torch.bool))


def test_recording_the_unet_forgets_the_picture(make_session):
    session = make_session()
    session.generate(OLD, steps=2)
    with session.record():
        session.model(torch.randn(1, 4, 16, 16), 5, torch.randn(1, 77, 64))
    with pytest.raises(RecordingError, match="nothing is generated yet"):
        _ = session.original


def test_failed_generate_keeps_the_picture(shared, where, monkeypatch):
    picture = shared.original
    with monkeypatch.context() as patch:
        patch.setattr(shared.pipe.vae, "decode", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.generate(NEW, steps=2)
    assert shared.original is picture and shared.edit(THIRD, mask=where).calls == 5


def test_state_of_the_autoencoder_is_told(shared):
    assert sum(shared.vae.state_bytes().values()) > 0 and sum(shared.state_bytes().values()) > 0


@pytest.mark.parametrize("switch", ["enable_slicing", "enable_tiling"])
def test_autoencoder_in_pieces_is_refused(make_session, switch):
    session = make_session()
    getattr(session.pipe.vae, switch)()
    try:
        with pytest.raises(ModelError, match="the autoencoder works in slices or tiles"):
            session.generate(OLD, steps=2)
    finally:
        getattr(session.pipe.vae, switch.replace("enable", "disable"))()
