"""Guards on a device that the host does not wait for: answered when the edit ends, about what the inputs were."""

import pytest
import torch

import sige
from sige import answers, guards
from sige.errors import ChangedInputError, NonFiniteError

TIMES = [torch.tensor(time) for time in (700, 500, 300, 100)]


@pytest.fixture
def distant(monkeypatch):
    """CPU tensors stand for those of a device that one waits for."""
    for module in (answers, guards):
        monkeypatch.setattr(module, "waits", lambda device: True)


@pytest.fixture
def session(unet, small, images, distant):
    session = sige.Session(unet, small("incremental"))
    with session.record():
        for time in TIMES:
            unet(images[0], time)
    return session


def outside(edited):
    edited[0, 1, 3, 5] += 1


def not_finite(edited):
    edited[0, 0, 30, 30] = float("nan")


SPOILT = pytest.mark.parametrize(
    "spoil, error, message",
    [
        pytest.param(
            outside, ChangedInputError, "at 1 positions outside the mask, the first at row 3, column 5", id="outside"
        ),
        pytest.param(not_finite, NonFiniteError, "input 'sample' of shape .* holds NaN or infinity", id="NaN"),
    ],
)


@SPOILT
@pytest.mark.parametrize("step", [0, 3], ids=["first step", "replayed step"])
def test_a_wrong_input_is_an_error_at_the_end_of_the_block(session, unet, images, spoil, error, message, step):
    edited, ran = images[1].clone(), []
    spoil(edited)
    with pytest.raises(error, match=message), session.edit(images[2]):
        for number, time in enumerate(TIMES):
            ran.append(unet(edited if number == step else images[1], time))
    assert len(ran) == 4


def test_a_time_step_that_changed_is_one_too(session, unet, images):
    with pytest.raises(ChangedInputError, match=r"input 'timestep' differs from the recording \(\[700\] -> \[600\]\)"):
        with session.edit(images[2]):
            unet(images[1], torch.tensor(600))


def test_the_edit_is_taken_back(session, unet, images):
    def remembered():
        return [part.clone() for step in session._steps for entry in step.entries.values() for part in entry.tensors()]

    before, edited = remembered(), images[1].clone()
    outside(edited)
    with pytest.raises(ChangedInputError), session.edit(images[2]):
        unet(edited, TIMES[0])
    assert all(torch.equal(*pair) for pair in zip(before, remembered(), strict=True))


def test_the_first_complaint_is_raised(session, unet, images):
    first, second = images[1].clone(), images[1].clone()
    not_finite(first), outside(second)
    with pytest.raises(NonFiniteError), session.edit(images[2]):
        unet(first, TIMES[0])
        unet(second, TIMES[1])


def test_what_the_caller_does_to_an_input_later_changes_no_answer(session, unet, images):
    edited, good = images[1].clone(), images[1].clone()
    outside(edited)
    with pytest.raises(ChangedInputError, match="at 1 positions"), session.edit(images[2]):
        unet(edited, TIMES[0])
        edited.copy_(images[1])
    with session.edit(images[2]):
        unet(good, TIMES[0])
        good.fill_(7)
    assert session.undo() is None


def test_a_right_edit_gives_what_it_gives_where_nobody_waits(unet, small, images, session, monkeypatch):
    def outputs(session):
        with session.edit(images[2]):
            return [unet(images[1], time).sample for time in TIMES]

    found = outputs(session)
    monkeypatch.undo()
    near = sige.Session(unet, small("incremental"))
    with near.record():
        for time in TIMES:
            unet(images[0], time)
    assert all(torch.equal(*pair) for pair in zip(found, outputs(near), strict=True))


def test_a_replayed_step_waits_for_nothing(session, unet, images, monkeypatch):
    """Calls that bring a number to the host are caught; copies between devices, of which a CPU has one, are not."""
    waited = []

    def watched(name, call):
        return lambda *args, **kwargs: waited.append(name) or call(*args, **kwargs)

    with session.edit(images[2]):
        for time in TIMES[:2]:
            unet(images[1], time)
        with monkeypatch.context() as patch:
            for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero", "numpy", "cpu"):
                patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
            for name in ("equal", "nonzero", "allclose", "masked_select"):
                patch.setattr(torch, name, watched(name, getattr(torch, name)))
            for time in TIMES[2:]:
                unet(images[1], time)
    assert (session.replayed_steps, waited) == (2, [])


def test_all_answers_are_heard_at_once(session, unet, images, monkeypatch):
    heard, tolist = [], torch.Tensor.tolist
    with session.edit(images[2]):
        for time in TIMES:
            unet(images[1], time)
        monkeypatch.setattr(torch.Tensor, "tolist", lambda self: heard.append(self.shape) or tolist(self))
    assert heard == [(12,)]  # of each step: is the image finite, is it unchanged outside, is the time step the same
