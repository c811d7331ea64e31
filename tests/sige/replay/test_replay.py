"""Replayed steps give the bits that the model's own Python gives, and nothing is replayed that could differ."""

import copy

import pytest
import torch
from torch import nn

import sige
from sige import macs

TIMES = (700, 500, 300, 100)
POLICIES = ["incremental", "sige", "sige_public", "pixel", "fisedit", "fisedit_radical"]


def maps(session):
    """Every remembered tensor of every step."""
    return [tensor for step in session._steps for entry in step.entries.values() for tensor in entry.tensors()]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def steps_of(model, policy, images, times=TIMES, edits=1, commit=True, **settings):
    """Outputs of recorded and edited steps, effect and session; every edit but the last is taken back."""
    original, edited, mask = images
    session = sige.Session(model, policy, **settings)
    with session.record():
        for time in times:
            model(original, time)
    for _ in range(edits):
        with session.edit(mask) as effect:
            outputs = [model(edited, time).sample for time in times]
    if commit:
        session.commit()
    return outputs, effect, session


def edit(session, x, mask, **wanted):
    """Outputs of one edit of all steps; ``replay`` turns replaying on or off before."""
    session._replay._wanted = wanted.get("replay", True)
    with session.edit(mask):
        return [session.model(x, time).sample for time in tensor_times()]


def record(session, x):
    with session.record():
        for time in tensor_times():
            session.model(x, time)
    return session


def tensor_times():
    return [torch.tensor(time) for time in TIMES]


@pytest.mark.parametrize("name", POLICIES)
def test_replayed_steps_give_the_same_bits(unet, small, images, name):
    plain, _, _ = steps_of(unet, small(name), images, tensor_times(), replay=False)
    replayed, _, session = steps_of(unet, small(name), images, tensor_times())
    assert (session.replayed_steps, same(plain, replayed)) == (2, True)


@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_replayed_steps_leave_the_same_state(unet, small, images, name):
    _, _, one = steps_of(unet, small(name), images, tensor_times(), replay=False)
    _, _, other = steps_of(unet, small(name), images, tensor_times())
    assert same(maps(one), maps(other))


@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_undo_takes_replayed_steps_back(unet, small, images, name):
    _, _, session = steps_of(unet, small(name), images, tensor_times(), commit=False)
    after = [tensor.clone() for tensor in maps(session)]
    session.undo()
    fresh = record(sige.Session(unet, small(name), replay=False), images[0])
    assert (same(after, maps(session)), same(maps(fresh), maps(session))) == (False, True)


@pytest.fixture(scope="module")
def text_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def edits_of_text(model, policy, texts, together, **settings):
    """Outputs of edits of one picture by changed texts, one after the other; ``together``: each step gets a tensor of its own."""
    generator = torch.Generator().manual_seed(0)
    x, first, *others = (torch.randn(2, *size, generator=generator) for size in ((4, 32, 32), *[(7, 32)] * (1 + texts)))
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 4:12, 6:20], mask[1, 20:28, 2:9] = True, True
    session = sige.Session(model, policy, **settings)
    outputs = []
    with session.record():
        for time in tensor_times():
            model(x, time, encoder_hidden_states=first)
    for text in others:
        with session.edit(mask, changed=("encoder_hidden_states",)):
            for time in tensor_times():
                given = text if together else text.clone()
                outputs.append(model(x, time, encoder_hidden_states=given).sample)
    return outputs, session.replayed_steps


@pytest.mark.parametrize(
    "together, replayed", [pytest.param(True, 4, id="one tensor"), pytest.param(False, 0, id="a tensor a step")]
)
@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_edits_of_the_text_are_replayed_with_the_text_they_have(text_unet, small, name, together, replayed):
    plain, _ = edits_of_text(text_unet, small(name), 2, together, replay=False)
    other, steps = edits_of_text(text_unet, small(name), 2, together)
    assert (steps, same(plain, other)) == (replayed, True)


def edit_after_another_text(model, policy, committed, replay):
    """Outputs of an edit of the image after the text became another one, by a committed edit or in a recording made anew."""
    generator = torch.Generator().manual_seed(0)
    x, other, *texts = (torch.randn(1, *size, generator=generator) for size in ((4, 32, 32),) * 2 + ((7, 32),) * 2)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:12, 6:20] = True
    edited, session = torch.where(mask, other, x), sige.Session(model, policy, replay=replay)

    def steps(image, text):
        return [model(image, time, encoder_hidden_states=text).sample for time in tensor_times()]

    with session.record():
        steps(x, texts[0])
    with session.edit(mask):
        steps(edited, texts[0])
    if committed:
        with session.edit(mask, changed=("encoder_hidden_states",)):
            steps(x, texts[1])
        session.commit()
    else:
        with session.record():
            steps(x, texts[1])
    with session.edit(mask):
        return steps(edited, texts[1]), session.replayed_steps


@pytest.mark.parametrize(
    "committed, steps", [pytest.param(True, 8, id="committed"), pytest.param(False, 6, id="recorded")]
)
@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_a_program_does_not_remember_the_text_that_it_was_traced_with(text_unet, small, name, committed, steps):
    plain, _ = edit_after_another_text(text_unet, small(name), committed, False)
    found, replayed = edit_after_another_text(text_unet, small(name), committed, True)
    assert (replayed, same(plain, found)) == (steps, True)


def test_the_effect_reports_replayed_steps_like_others(unet, small, images):
    _, one, _ = steps_of(unet, small("incremental"), images, tensor_times(), replay=False)
    _, other, _ = steps_of(unet, small("incremental"), images, tensor_times())
    assert (one.steps, one.macs, one.sparse_macs_by_kind, one.fallbacks, one.active.tolist()) == (
        other.steps,
        other.macs,
        other.sparse_macs_by_kind,
        other.fallbacks,
        other.active.tolist(),
    )


def test_a_second_edit_with_the_same_mask_is_replayed_from_its_first_step_on(unet, small, images):
    plain, _, _ = steps_of(unet, small("incremental"), images, tensor_times(), replay=False)
    replayed, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2)
    assert (session.replayed_steps, same(plain, replayed)) == (6, True)


class Conv(nn.Module):
    """A convolution, and what ``then`` makes of its output and the time step."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 3, 3, padding=1), then

    def forward(self, x, time):
        return self.then(self.conv(x), time)


def put_in(x, time):
    bias = torch.zeros(1, 3, 1, 1)
    bias[:, 0] = time / 100
    return x + bias


@pytest.mark.parametrize(
    "then, times",
    [
        pytest.param(put_in, TIMES, id="a number put into a constant"),
        pytest.param(lambda x, time: x.relu().mul_(time / 100) + 1, TIMES, id="a number in place"),
        pytest.param(lambda x, time: x * (time / 100), TIMES, id="a number that takes part"),
        pytest.param(lambda x, time: x.relu() if time > 400 else x.tanh(), TIMES, id="a branch on a number"),
        pytest.param(
            lambda x, time: x + torch.tensor([time / 9]).sin().view(1, 1, 1, 1), TIMES, id="a constant made of it"
        ),
        pytest.param(lambda x, time: x * (2 if time.item() > 400 else 3), tensor_times(), id="a value looked at"),
    ],
)
def test_steps_that_a_number_tells_apart_are_not_replayed(small, images, then, times):
    model, (original, edited, mask) = Conv(then), images
    results = []
    for replay in (False, True):
        session = sige.Session(model, small("pixel"), replay=replay)
        with session.record():
            for time in times:
                model(original, time)
        with session.edit(mask):
            results.append([model(edited, time) for time in times])
    assert (session.replayed_steps, same(*results)) == (0, True)


def test_steps_with_the_same_number_are_replayed(small, images):
    model, (original, edited, mask) = Conv(lambda x, time: x * (time / 100)), images
    session = sige.Session(model, small("pixel"))
    with session.record():
        for _ in range(3):
            model(original, 500)
    with session.edit(mask):
        outputs = [model(edited, 500) for _ in range(3)]
    assert (session.replayed_steps, torch.equal(outputs[0], outputs[2])) == (1, True)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda unet: setattr(unet.conv_in, "weight", nn.Parameter(2 * unet.conv_in.weight)), id="a new parameter"
        ),
        pytest.param(
            lambda unet: setattr(unet.mid_block.resnets[0], "output_scale_factor", 2.0), id="a number in a layer"
        ),
        pytest.param(lambda unet: setattr(unet, "conv_act", nn.Tanh()), id="another layer"),
        pytest.param(lambda unet: unet.conv_in.weight.data.mul_(2), id="a parameter written to"),
    ],
)
def test_a_model_that_changed_between_edits_is_not_replayed_as_it_was(unet, small, images, change):
    original, edited, mask = images
    session = record(sige.Session(copy.deepcopy(unet), small("sige")), original)
    for _ in range(2):
        edit(session, edited, mask)
    session.undo()
    change(session.model)
    replayed = edit(session, edited, mask)
    assert same(edit(session, edited, mask, replay=False), replayed)


def test_hooks_are_heard(unet, small, images):
    original, edited, mask = images
    session = record(sige.Session(unet, small("incremental")), original)
    edit(session, edited, mask)
    heard = []
    handle = unet.conv_in.register_forward_hook(lambda *_: heard.append(1))
    try:
        edit(session, edited, mask)
    finally:
        handle.remove()
    assert len(heard) == len(TIMES)


def test_a_counter_sees_what_runs(unet, small, images):
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), commit=False)
    with macs.MacCounter() as counter, session.edit(images[2]) as effect:
        for time in tensor_times():
            unet(images[1], time)
    assert counter.count.total == effect.macs


def test_a_recording_made_anew_is_edited_anew(unet, small, images):
    original, edited, mask = images
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2)
    record(session, -original)
    moved = torch.where(mask, edited, -original)
    assert same(edit(session, moved, mask), edit(session, moved, mask, replay=False))


def test_an_input_in_another_layout_is_not_replayed_as_the_first(unet, small, images):
    _, edited, mask = images
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2, commit=False)
    last = edited.contiguous(memory_format=torch.channels_last)
    assert same(edit(session, last, mask), edit(session, last, mask, replay=False))


def test_replay_can_be_turned_off(unet, small, images):
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2, replay=False)
    assert session.replayed_steps == 0
