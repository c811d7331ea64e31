"""Edits by prompt: the mask found in the first steps, dense steps at either end, attention control, weights; what commit makes."""

import copy

import pytest
import torch

import sige
from sige import masks
from sige.errors import ChangedInputError, MaskError, PromptError, RecordingError
from sige.pipelines import mask_search
from sige.pipelines.editing import recorded_input

STEPS = 5
OLD, NEW, THIRD = "a dog on a sofa", "a cat on a sofa", "a cat on a red sofa"


@pytest.fixture(scope="module")
def generated(make_session):
    """``generated(**settings)``: a session with the picture of the old prompt."""

    def make(scheduler=None, **settings):
        session = make_session(scheduler=scheduler)
        session.generate(OLD, seed=3, steps=STEPS, **settings)
        return session

    return make


def kinds(edited):
    return "".join(kind[0] for _, kind, _, _ in edited.steps)


def test_mask_is_the_one_that_the_search_finds(shared):
    edited = shared.edit(NEW, mask_steps=(1, 2))
    found = mask_search.search(shared.pipe, OLD, NEW, seed=3, steps=STEPS, mask_steps=(1, 2))
    assert edited.mask_source == "prompt" and 0 < edited.mask.float().mean() < 0.6
    assert torch.equal(edited.mask, found[False].mask)


def test_mask_under_attention_control_is_the_one_that_the_search_finds(generated):
    session = generated(attention_control=2)
    edited = session.edit(NEW, mask_steps=(1, 2), attention_control=True)
    found = mask_search.search(session.pipe, OLD, NEW, seed=3, steps=STEPS, mask_steps=(1, 2))
    assert torch.equal(edited.mask, found[True].mask)
    assert not torch.equal(edited.mask, found[False].mask)


@pytest.mark.parametrize(
    "settings, expected",
    [
        pytest.param({}, "dssss", id="a-fifth-by-default"),
        pytest.param({"mask_steps": (1, 2)}, "ddsss", id="mask-steps"),
        pytest.param({"mask_steps": (1, 2), "dense_first": 3, "dense_last": 1}, "dddsd", id="both-ends"),
        pytest.param({"dense_last": 4}, "ddddd", id="nothing-sparse"),
        pytest.param({"mask_steps": (1, 5)}, "ddddd", id="all-for-the-mask"),
    ],
)
def test_schedule_of_dense_and_sparse_steps(generated, settings, expected):
    session = generated()
    assert kinds(session.edit(NEW, **settings)) == expected
    session.commit()
    assert session.recorded_steps == STEPS


def test_user_mask_overrides_the_found_one(shared, where):
    edited = shared.edit(NEW, mask=where, dense_first=2)
    assert edited.mask_source == "user" and kinds(edited) == "ddsss" and torch.equal(edited.mask[0], where)


def test_full_mask_behind_dense_steps_is_the_dense_pipeline(generated, dense, distance):
    session = generated(scheduler="DPMSolverMultistepScheduler")
    edited = session.edit(NEW, mask=torch.ones(16, 16, dtype=torch.bool), dense_first=2, dense_last=1)
    assert distance(edited.image, dense(session.pipe, NEW, seed=3, num_inference_steps=STEPS)) < 1e-3


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_outside_the_found_mask_latents_are_the_recording(generated, scheduler):
    session = generated(scheduler=scheduler)
    recorded = session.trajectory.copy()
    edited = session.edit(NEW, mask_steps=(1, 2))
    session.commit()
    outside = ~edited.mask[:, None].expand_as(edited.latents)
    for now, was in zip(session.trajectory.latents, recorded.latents, strict=True):
        assert torch.equal(now[outside], was[outside])


def test_dense_last_steps_change_the_whole_picture(shared, where):
    picture = shared.original
    edited = shared.edit(NEW, mask=where, dense_last=1)
    assert not torch.equal(edited.latents[:, :, ~where], picture.latents[:, :, ~where])


def test_commit_makes_every_step_one_of_the_new_prompt(generated):
    session = generated()
    edited = session.edit(NEW, mask_steps=(1, 2))
    session.commit()
    texts = [recorded_input(session, number, "encoder_hidden_states") for number in range(STEPS)]
    assert all(torch.equal(text, texts[0]) for text in texts)
    for number in range(1, STEPS):  # what a step was called with is what the one before it gave
        sample = recorded_input(session, number)
        assert torch.equal(sample, session.trajectory.latents[number - 1].repeat(2, 1, 1, 1))
    assert edited.latents is not None


def test_committed_steps_are_those_of_a_dense_run_where_the_mask_is_full(generated, distance):
    session = generated()
    session.edit(NEW, mask=torch.ones(16, 16, dtype=torch.bool), dense_first=2)
    session.commit()
    other = generated()
    other.generate(NEW, seed=3, steps=STEPS)
    for mine, whole in zip(session._steps, other._steps, strict=True):
        assert distance(mine.output[0], whole.output[0]) < 1e-3


@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_failed_commit_takes_the_edit_back(make_pipe, shared, where, elsewhere, monkeypatch, part):
    session = sige.Session(make_pipe(), shared.policy, vae_policy="incremental")
    picture = session.generate(OLD, seed=3, steps=STEPS)
    expected = session.edit(THIRD, mask=elsewhere).image
    session.edit(NEW, mask=where, dense_first=1, dense_last=1)  # at its end both halves wait to be recorded anew
    with monkeypatch.context() as patch:
        patch.setattr(session if part == "unet" else session.vae.decoder, "_record_anew", lambda reruns: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.commit()
    assert session.original is picture
    with pytest.raises(RecordingError, match="there is no edit to commit"):
        session.commit()
    assert torch.equal(session.edit(THIRD, mask=elsewhere).image, expected)


def test_commit_tells_what_it_computes(generated, where):
    session = generated()
    session.edit(NEW, mask=where)
    assert session.commit() == 0
    edited = session.edit(THIRD, mask=where, dense_first=2, dense_last=1)
    dense = edited.steps[-1][3]
    assert dense < session.commit() < 3 * dense


def test_failed_edit_leaves_the_recording(shared, where, monkeypatch):
    expected = shared.edit(NEW, mask=where).image
    with monkeypatch.context() as patch:
        patch.setattr(shared.pipe.vae, "decode", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.edit(THIRD, mask=where)
    assert torch.equal(shared.edit(NEW, mask=where).image, expected)


def test_prompt_that_does_not_change(shared):
    with pytest.warns(UserWarning, match="neither prompt nor picture changed: the recorded picture is returned"):
        edited = shared.edit(OLD)
    assert torch.equal(edited.image, shared.original.image) and edited.calls == 0


def test_mask_that_is_found_empty(generated, monkeypatch):
    session = generated()
    monkeypatch.setattr(
        "sige.pipelines.session.prompt_mask", lambda new, old, steps: torch.zeros(1, 16, 16, dtype=torch.bool)
    )
    with pytest.warns(UserWarning, match="moves nothing that a mask could hold"):
        edited = session.edit(NEW, mask_steps=(1, 2))
    assert torch.equal(edited.image, session.original.image) and edited.calls == 2 and kinds(edited) == "dd"
    session.commit()
    assert session.request.prompts == [OLD]


def test_prompts_that_share_no_word_are_an_edit_like_any_other(shared, where):
    edited = shared.edit("two birds", mask=where)
    assert edited.change[0].kind == "unrelated" and edited.calls == STEPS


def test_prompt_longer_than_the_encoder_reads(shared, where):
    edited = shared.edit("a cat on a sofa " + "very " * 100, mask=where)
    assert edited.change[0].truncated and edited.calls == STEPS


def test_prompts_that_differ_in_what_is_not_read(make_session):
    session = make_session()
    long = "a dog on a sofa " + "very " * 100
    session.generate(long, steps=2)
    with pytest.raises(PromptError, match="differ only after token 75"):
        session.edit(long + "big")


def test_words_are_weighted_and_stay_weighted(generated, where, elsewhere):
    session = generated()
    picture = session.original
    edited = session.edit(prompt_weights={"dog": 3.0}, mask=where)
    assert not torch.equal(edited.latents, picture.latents)
    session.commit()
    with pytest.warns(UserWarning, match="neither prompt nor picture changed"):
        session.edit(OLD, mask=where)
    assert session.edit(NEW, mask=elsewhere, prompt_weights={"cat": 3.0}).calls == STEPS


def test_weights_of_full_mask_edit_are_those_of_a_weighted_recording(generated, distance):
    session = generated()
    edited = session.edit(prompt_weights={"dog": 3.0}, mask=torch.ones(16, 16, dtype=torch.bool))
    expected = generated(prompt_weights={"dog": 3.0}).original
    assert distance(edited.image, expected.image) < 1e-3


def test_attention_control_changes_a_sparse_edit(generated, where, distance):
    session = generated(attention_control=STEPS)
    free = session.edit(NEW, mask=where).image
    held = session.edit(NEW, mask=where, attention_control=True).image
    assert distance(held, free) > 1e-4


def test_attention_is_kept_for_the_edit_after(generated):
    session = generated(attention_control=2)
    session.edit(NEW, mask_steps=(1, 2), attention_control=True)
    session.commit()
    assert session._control_prompts == [NEW]
    assert session.edit(THIRD, mask_steps=(1, 2), attention_control=True).calls == STEPS


@pytest.fixture(scope="module", params=[True, False], ids=["held", "free"])
def maps_of_edit(request, generated, where):
    """(maps of the old prompt, those that the edit made, those after its commit, bool positions inside by number of positions)."""
    session = generated(attention_control=2)
    old = copy.deepcopy(session.control._maps)
    session.edit(NEW, mask=where, dense_first=2, attention_control=request.param)
    made = copy.deepcopy(session.control._pending)
    session.commit()
    sides = (16, 8, 4)
    inside = {side * side: masks.reduce_max(where[None], side, side).flatten() for side in sides}
    return old, made, session.control._maps, inside


def test_where_a_committed_edit_left_the_picture_attention_is_what_it_was(maps_of_edit):
    """The exchanged word stands where the word it is exchanged for stood."""
    old, _, kept, inside = maps_of_edit
    same = [
        torch.equal(kept[call][name][:, :, ~inside[before.shape[2]]], before[:, :, ~inside[before.shape[2]]])
        for call in range(2)
        for name, before in old[call].items()
    ]
    assert (all(same), len(same) > 2) == (True, True)


def test_where_a_committed_edit_changed_the_picture_attention_is_the_edits(maps_of_edit):
    old, made, kept, inside = maps_of_edit
    for call in range(2):
        for name, new in made[call].items():
            places = inside[new.shape[2]]
            assert torch.equal(kept[call][name][:, :, places], new[:, :, places])
            assert not torch.equal(new[:, :, places], old[call][name][:, :, places])


def test_the_way_back_from_a_committed_edit_leaves_the_first_call_alone_outside_its_mask(generated):
    """The first call starts from the recorded noise, so holding attention there adds nothing where maps are those of the old prompt."""
    session = generated(attention_control=2)
    begun = session.trajectory.latents[0].clone()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[0, 0] = True
    session.edit(NEW, mask=mask, dense_first=2)
    session.commit()
    session.edit(OLD, mask_steps=(1, 2), attention_control=True)
    (first, _), *_ = session._pending[0]._found
    assert ((first - begun).norm() / begun.norm()).item() < 0.02


def test_a_failed_commit_leaves_the_maps_that_were(generated, where, monkeypatch):
    session = generated(attention_control=2)
    before = copy.deepcopy(session.control._maps)
    session.edit(NEW, mask=where, dense_first=2, attention_control=True)
    monkeypatch.setattr(session, "_record_anew", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.commit()
    assert all(torch.equal(x, y) for a, b in zip(before, session.control._maps) for x, y in zip(a.values(), b.values()))


@pytest.fixture
def painted_over(generated, where):
    """``painted_over(calls, **settings)``: a held edit of a painted picture from the third step on, and its session."""

    def make(calls, **settings):
        session = generated(attention_control=calls)
        place = where.repeat_interleave(4, 0).repeat_interleave(4, 1)
        image = torch.where(place, 1 - session.original.image, session.original.image)
        options = {"image": image, "strength": 0.6, "attention_control": True, **settings}
        return session.edit(NEW, **options), session, image

    return make


def test_attention_of_an_edit_that_begins_later_is_that_of_its_steps(painted_over):
    """The third step's attention is held in the third step, whatever was remembered of the first two."""
    one, session, image = painted_over(3)
    session.undo()
    for maps in session.control._maps[:2]:
        for name in maps:
            maps[name] = torch.zeros_like(maps[name])
    again = session.edit(NEW, image=image, strength=0.6, attention_control=True)
    assert torch.equal(again.latents, one.latents)


@pytest.mark.parametrize("dense_first", [0, 1, 2])
def test_an_edit_that_begins_later_leaves_the_attention_of_the_first_steps(painted_over, dense_first):
    _, session, _ = painted_over(4, dense_first=dense_first)
    before = copy.deepcopy(session.control._maps)
    session.commit()
    same = [torch.equal(x, y) for a, b in zip(before, session.control._maps) for x, y in zip(a.values(), b.values())]
    assert (all(same), len(session.control._maps), session._control_prompts) == (True, 4, [OLD])


def test_an_edit_that_begins_behind_the_attention_that_is_remembered(painted_over):
    message = (
        r"^attention is remembered of the first 2 steps, this edit begins at step 3: generate\(..., attention_control=3\) or more "
        "before, or edit with a greater strength$"
    )
    with pytest.raises(RecordingError, match=message):
        painted_over(2)


def test_dense_last_steps_are_recorded_with_the_attention_that_they_ran_with(generated, where, distance):
    session, seen = generated(attention_control=STEPS), []
    handle = session.model.register_forward_hook(lambda module, args, out: seen.append(out[0].clone()))
    try:
        session.edit(NEW, mask=where, dense_last=2, attention_control=True)
    finally:
        handle.remove()
    session.commit()
    found = [distance(step.output[0], ran) for step, ran in zip(session._steps[-2:], seen[-2:], strict=True)]
    assert max(found) < 1e-5


def test_attention_control_without_maps(shared):
    with pytest.raises(RecordingError, match="no attention is remembered to hold"):
        shared.edit(NEW, attention_control=True)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        pytest.param({"steps": 7}, ChangedInputError, "the edit asks for 7 steps, the recording has 5", id="steps"),
        pytest.param(
            {"mask_steps": (1, 9)}, MaskError, r"the mask's steps are \(1, 9\): give .* t2 <= 5", id="mask-steps"
        ),
        pytest.param(
            {"mask_steps": (1, 3), "dense_first": 2}, MaskError, "dense_first=2 ends before step 3", id="dense-first"
        ),
        pytest.param(
            {"dense_last": 5},
            RecordingError,
            "dense_first=1 and dense_last=5 are more than the 5 steps",
            id="too-dense",
        ),
        pytest.param(
            {"dense_last": -1}, RecordingError, "dense_last=-1: give a whole number of at least 0", id="negative"
        ),
        pytest.param({"strength": 0.5}, ChangedInputError, "strength=0.5 without an image", id="strength"),
        pytest.param({"prompt": [NEW, NEW]}, PromptError, "2 prompts for 1 pictures", id="batch"),
        pytest.param({"prompt": 5}, PromptError, "prompts: 5 is int", id="type"),
        pytest.param({"prompt": None}, MaskError, "nothing to edit: give a prompt, an image or both", id="nothing"),
        pytest.param(
            {"prompt_weights": {"bird": 2.0}}, PromptError, "'bird' has a weight but is not among", id="weights"
        ),
    ],
)
def test_edit_that_cannot_be(shared, where, settings, error, message):
    picture = shared.original
    with pytest.raises(error, match=message):
        shared.edit(**{"prompt": NEW, **settings})
    assert shared.original is picture and shared.edit(NEW, mask=where).calls == STEPS


def test_scheduler_of_another_kind(generated, make_pipe, where):
    session = generated()
    session.pipe.scheduler = make_pipe(scheduler="EulerDiscreteScheduler").scheduler
    with pytest.raises(
        ChangedInputError, match="scheduler is a EulerDiscreteScheduler, the picture was generated with DDIMScheduler"
    ):
        session.edit(NEW, mask=where)


def test_scheduler_of_other_settings(generated, make_pipe, where):
    session = generated()
    session.pipe.scheduler = make_pipe(scheduler="DDIMScheduler", timestep_spacing="trailing").scheduler
    with pytest.raises(ChangedInputError, match="has other settings than the DDIMScheduler"):
        session.edit(NEW, mask=where)


def test_scheduler_that_makes_other_steps(shared, where, monkeypatch):
    monkeypatch.setattr("sige.pipelines.sampling.number_of_steps", lambda pipe, request: 4)
    with pytest.raises(ChangedInputError, match="the scheduler makes 4 steps, the recording has 5"):
        shared.edit(NEW, mask=where)


def test_time_steps_that_are_not_the_recorded_ones(generated, where):
    session = generated()
    session.trajectory.times[2] += 1
    with pytest.raises(
        ChangedInputError, match="U-Net call 3 of the edit is for time step .*, which the recording has not"
    ):
        session.edit(NEW, mask=where)
    session.trajectory.times[2] -= 1
    assert session.edit(NEW, mask=where).calls == STEPS
