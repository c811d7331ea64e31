"""The session's verbs: steps side by side, undo bit for bit, commit, what is remembered."""

import copy

import pytest
import torch

import sige

TIMES = (500, 300, 100)


def maps(session):
    """Every remembered tensor of every step, by (step, key, place)."""
    return {
        (number, key, place): tensor.clone()
        for number, step in enumerate(session._steps)
        for key, entry in step.entries.items()
        for place, tensor in enumerate(entry.tensors())
    }


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture
def steps(unet, small, images):
    """A session with three recorded steps."""
    session = sige.Session(unet, small("incremental"))
    with session.record():
        for time in TIMES:
            unet(images[0], time)
    return session


def test_steps_live_side_by_side(steps, unet, small, images):
    _, edited, mask = images
    with steps.edit(mask):
        together = [unet(edited, time).sample for time in TIMES]
    for time, output in zip(TIMES, together):
        single = sige.Session(unet, small("incremental"))
        with single.record():
            unet(images[0], time)
        with single.edit(mask):
            assert torch.equal(unet(edited, time).sample, output)


@pytest.mark.parametrize("name", ["incremental", "sige", "sige_public", "pixel"])
def test_undo_restores_every_map_bit_for_bit(unet, small, images, name):
    session = sige.Session(unet, small(name))
    with session.record():
        unet(images[0], 500)
    before = maps(session)
    with session.edit(images[2]):
        unet(images[1], 500)
    changed = not same(before, maps(session))
    session.undo()
    assert (changed, same(before, maps(session))) == (True, True)


def test_exception_in_the_middle_leaves_no_trace(steps, unet, images):
    before = maps(steps)
    hook = unet.up_blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("half way")))
    with pytest.raises(KeyError), steps.edit(images[2]):
        unet(images[1], TIMES[0])
    hook.remove()
    assert same(before, maps(steps))


def test_exception_after_some_steps_takes_them_back(steps, unet, images):
    before = maps(steps)
    with pytest.raises(ZeroDivisionError), steps.edit(images[2]):
        unet(images[1], TIMES[0])
        unet(images[1], TIMES[1])
        raise ZeroDivisionError
    assert same(before, maps(steps))


def test_failed_recording_keeps_the_one_before(steps, unet, images):
    with pytest.raises(ZeroDivisionError), steps.record():
        unet(images[0], 7)
        raise ZeroDivisionError
    assert steps.recorded_steps == len(TIMES)


def test_next_edit_starts_from_the_recording(steps, unet, images):
    _, edited, mask = images
    with steps.edit(mask):
        first = unet(edited, TIMES[0]).sample
    with steps.edit(mask):
        again = unet(edited, TIMES[0]).sample
    assert torch.equal(first, again)


def test_committed_edit_is_what_the_next_one_builds_on(unet, small, images, relative):
    original, edited, mask = images
    second = torch.zeros_like(mask)
    second[30:50, 40:60] = True
    both = torch.where(second, edited - 1, edited)
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(original, 500)
    with session.edit(mask):
        first = unet(edited, 500).sample
    session.commit()
    with session.edit(second) as effect:
        after = unet(both, 500).sample
    outside = ~effect.active[:, None].expand_as(after)
    assert torch.equal(after[outside], first[outside])


def test_committed_dense_edit_is_recorded(unet, small, images, relative):
    original, edited, mask = images
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(original, 500)
    with session.edit(torch.ones_like(mask)):
        unet(original + 1, 500)
    session.commit()
    fresh = sige.Session(unet, small("incremental"))
    with fresh.record():
        unet(original + 1, 500)
    assert same(maps(fresh), maps(session))


def test_levels_that_ran_dense_are_committed_too(unet, small, images):
    original, edited, mask = images
    session = sige.Session(unet, small("incremental", dense_above=0.3))
    with session.record():
        unet(original, 500)
    before = maps(session)
    with session.edit(mask):
        unet(edited, 500)
    session.undo()
    assert same(before, maps(session))


def test_model_is_left_as_it_was(unet, small, images):
    before = set(unet.__dict__)
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(images[0], 500)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())
    assert (set(unet.__dict__), "forward" in unet.__dict__, hooks) == (before, False, 0)


def test_two_sessions_on_one_model(unet, small, images):
    original, edited, mask = images
    sessions = [sige.Session(unet, small(name)) for name in ("incremental", "sige")]
    for session in sessions:
        with session.record():
            unet(original, 500)
    outputs = []
    for session in sessions:
        with session.edit(mask):
            outputs.append(unet(edited, 500).sample)
    assert not torch.equal(*outputs)


def test_output_has_the_models_own_type_and_layout(unet, small, images):
    session = sige.Session(unet, small("incremental"))
    with session.record():
        before = unet(images[0], 500, return_dict=False)
    with session.edit(images[2]):
        after = unet(images[1], 500, return_dict=False)
    assert (type(after), type(after[0]), after[0].shape) == (tuple, torch.Tensor, before[0].shape)


def test_weights_changed_after_an_edit_are_seen(unet, small, images):
    model = copy.deepcopy(unet)
    original, edited, mask = images
    session = sige.Session(model, small("incremental", dense_above=None))
    with session.record():
        model(original, 500)
    with session.edit(mask):
        before = model(edited, 500).sample
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    with session.record():
        model(original, 500)
    with session.edit(torch.ones_like(mask)):
        after = model(edited, 500).sample
    with torch.no_grad():
        assert (torch.allclose(after, model(edited, 500).sample, atol=1e-4), torch.allclose(before, after)) == (
            True,
            False,
        )


def test_state_is_reported_by_kind(steps):
    sizes = steps.state_bytes()
    assert {"conv_input", "norm_sums", "kv", "output"} <= sizes.keys() and min(sizes.values()) > 0


def test_state_dtype_halves_the_maps(unet, small, images):
    totals = []
    for dtype in (None, torch.bfloat16):
        session = sige.Session(unet, small("incremental", state_dtype=dtype))
        with session.record():
            unet(images[0], 500)
        totals.append(session.state_bytes()["conv_input"])
    assert totals[1] * 2 == totals[0]


def test_state_in_bfloat16_stays_close(unet, small, images, relative):
    original, edited, mask = images
    outputs = []
    for dtype in (None, torch.bfloat16):
        session = sige.Session(unet, small("incremental", state_dtype=dtype))
        with session.record():
            unet(original, 500)
        with session.edit(mask):
            outputs.append(unet(edited, 500).sample)
    assert 0 < relative(outputs[1], outputs[0]) < 2e-2


def test_close_forgets(steps, images):
    steps.close()
    with pytest.raises(sige.errors.RecordingError, match="nothing is recorded"), steps.edit(images[2]):
        pass


def test_macs_add_up_over_steps(steps, unet, images):
    with steps.edit(images[2]) as effect:
        for time in TIMES:
            unet(images[1], time)
    assert (effect.steps, effect.macs, effect.macs < effect.dense_macs) == (
        3,
        sum(effect.sparse_macs_by_kind.values()),
        True,
    )


class Halved(torch.nn.Module):
    """A map of half the sides."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize("fill", [True, False], ids=["full mask", "empty mask"])
@pytest.mark.filterwarnings("ignore:the edit mask is empty")
def test_what_was_recomputed_is_told_at_the_outputs_resolution(images, fill):
    model = Halved()
    session = sige.Session(model, "incremental")
    with session.record():
        model(images[0])
    with session.edit(torch.full((64, 64), fill)) as effect:
        model(images[0])
    assert (tuple(effect.active.shape), bool(effect.active.all()), bool(effect.active.any())) == (
        (1, 32, 32),
        fill,
        fill,
    )


def test_an_edit_may_start_at_a_later_forward(steps, unet, images):
    _, edited, mask = images
    with steps.edit(mask):
        whole = [unet(edited, time).sample for time in TIMES]
    with steps.edit(mask, start=1):
        late = [unet(edited, time).sample for time in TIMES[1:]]
    assert all(torch.equal(one, other) for one, other in zip(whole[1:], late, strict=True))


def test_forwards_before_the_start_stay_as_recorded(steps, unet, images):
    before = maps(steps)
    with steps.edit(images[2], start=1):
        unet(images[1], TIMES[1])
    steps.commit()
    after = maps(steps)
    assert [all(torch.equal(before[key], after[key]) for key in before if key[0] == step) for step in range(3)] == [
        True,
        False,
        True,
    ]


def test_a_start_beyond_the_recording_is_refused(steps, images):
    with pytest.raises(sige.SigeError, match="start=3 is not among the 3 recorded forwards"):
        with steps.edit(images[2], start=3):
            pass


def test_a_dense_forward_takes_any_input(steps, unet, images):
    _, edited, mask = images
    with steps.edit(mask, dense=(1,)):
        unet(edited, TIMES[0])
        output = unet(-edited, TIMES[1]).sample
    assert torch.equal(output, unet(-edited, TIMES[1]).sample)


def test_a_dense_forward_counts_in_full(steps, unet, images):
    with steps.edit(images[2], dense=range(3)) as effect:
        for time in TIMES:
            unet(images[1], time)
    assert effect.macs == effect.dense_macs


def test_a_committed_dense_forward_is_built_upon(steps, unet, small, images):
    _, edited, mask = images
    with steps.edit(mask, dense=(0,)):
        unet(-edited, TIMES[0])
    steps.commit()
    fresh = sige.Session(unet, small("incremental"))
    with fresh.record():
        unet(-edited, TIMES[0])
    moved = torch.where(mask, edited, -edited)
    results = []
    for session in (steps, fresh):
        with session.edit(mask):
            results.append(unet(moved, TIMES[0]).sample)
    assert torch.equal(*results)


def test_an_edit_of_everything_under_the_papers_policy_costs_no_more_than_the_model(unet, small, images):
    session = sige.Session(unet, small("sige"))
    with session.record():
        unet(images[0], 500)
    with session.edit(torch.ones(64, 64, dtype=torch.bool)) as effect:
        unet(images[1], 500)
    # what the time step alone decides is remembered
    assert 0.999 < effect.macs / effect.dense_macs <= 1
