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
    fresh = sige.Session(unet, small(name), replay=False)
    with fresh.record():
        for time in tensor_times():
            unet(images[0], time)
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


def test_steps_are_told_apart_by_a_number_that_takes_part(small, images):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, time):
            return self.conv(x) * (time / 100)

    torch.manual_seed(0)
    model, (original, edited, mask) = Scaled(), images
    results = []
    for replay in (False, True):
        session = sige.Session(model, small("pixel"), replay=replay)
        with session.record():
            for time in TIMES:
                model(original, time)
        with session.edit(mask):
            results.append([model(edited, time) for time in TIMES])
    assert (session.replayed_steps, same(*results)) == (0, True)


def test_steps_are_told_apart_by_a_branch_on_a_number(small, images):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, time):
            x = self.conv(x)
            return x.relu() if time > 400 else x.tanh()

    torch.manual_seed(0)
    model, (original, edited, mask) = Branching(), images
    results = []
    for replay in (False, True):
        session = sige.Session(model, small("pixel"), replay=replay)
        with session.record():
            for time in TIMES:
                model(original, time)
        with session.edit(mask):
            results.append([model(edited, time) for time in TIMES])
    assert (session.replayed_steps, same(*results)) == (0, True)  # two of each: the one runs, the other is traced


def test_a_constant_made_from_the_time_step_keeps_steps_apart(small, images):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, time):
            return self.conv(x) + torch.tensor([float(time)]).sin().view(1, 1, 1, 1)

    torch.manual_seed(0)
    model, (original, edited, mask) = Shifted(), images
    results = []
    for replay in (False, True):
        session = sige.Session(model, small("pixel"), replay=replay)
        with session.record():
            for time in TIMES:
                model(original, time)
        with session.edit(mask):
            results.append([model(edited, time) for time in TIMES])
    assert (session.replayed_steps, same(*results)) == (0, True)


def test_a_model_that_looks_at_values_is_not_replayed(small, images):
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, time):
            return self.conv(x) * (2 if time.item() > 400 else 3)

    model, (original, edited, mask) = Looking(), images
    session = sige.Session(model, small("pixel"))
    with session.record():
        for time in tensor_times():
            model(original, time)
    with session.edit(mask):
        for time in tensor_times():
            model(edited, time)
    assert session.replayed_steps == 0


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
    model = copy.deepcopy(unet)
    original, edited, mask = images
    session = sige.Session(model, small("sige"))
    with session.record():
        for time in tensor_times():
            model(original, time)
    for _ in range(2):
        with session.edit(mask):
            for time in tensor_times():
                model(edited, time)
    session.undo()
    change(model)
    with session.edit(mask):
        replayed = [model(edited, time).sample for time in tensor_times()]
    session._replay._wanted = False
    with session.edit(mask):
        plain = [model(edited, time).sample for time in tensor_times()]
    assert same(plain, replayed)


def test_hooks_are_heard(unet, small, images):
    original, edited, mask = images
    session = sige.Session(unet, small("incremental"))
    with session.record():
        for time in tensor_times():
            unet(original, time)
    with session.edit(mask):
        for time in tensor_times():
            unet(edited, time)
    heard = []
    handle = unet.conv_in.register_forward_hook(lambda *_: heard.append(1))
    try:
        with session.edit(mask):
            for time in tensor_times():
                unet(edited, time)
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
    with session.record():
        for time in tensor_times():
            unet(-original, time)
    moved = torch.where(mask, edited, -original)
    results = []
    for wanted in (True, False):
        session._replay._wanted = wanted
        with session.edit(mask):
            results.append([unet(moved, time).sample for time in tensor_times()])
    assert same(*results)


def test_an_input_in_another_layout_is_not_replayed_as_the_first(unet, small, images):
    original, edited, mask = images
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2, commit=False)
    last = edited.contiguous(memory_format=torch.channels_last)
    results = []
    for wanted in (True, False):
        session._replay._wanted = wanted
        with session.edit(mask):
            results.append([unet(last, time).sample for time in tensor_times()])
    assert same(*results)


def test_replay_can_be_turned_off(unet, small, images):
    _, _, session = steps_of(unet, small("incremental"), images, tensor_times(), edits=2, replay=False)
    assert session.replayed_steps == 0
