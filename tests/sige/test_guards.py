"""Bad input: one clear sentence each, and nothing is lost."""

import dataclasses

import pytest
import torch
from torch import nn

import sige
from sige.errors import ChangedInputError, MaskError, ModelError, NonFiniteError, PathError, PolicyError, RecordingError


@pytest.fixture
def session(unet, small, images):
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(images[0], 500)
    return session


def test_unknown_policy_lists_the_names(unet):
    with pytest.raises(
        PolicyError,
        match="unknown policy 'sigee': choose one of sige, sige_public, pixel, fisedit, fisedit_radical, incremental, tokens, dense",
    ):
        sige.Session(unet, "sigee")


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(
            {"norm": "frozen"}, "norm='frozen' is unknown: choose one of cached, incremental, dense", id="norm"
        ),
        pytest.param({"kv": "all"}, "kv='all' is unknown", id="kv"),
        pytest.param({"geometry": "tiles"}, "geometry='tiles' is unknown", id="geometry"),
        pytest.param({"pyramid": "mean"}, "pyramid='mean' is unknown", id="pyramid"),
        pytest.param({"block": 0}, "block=0 must be a whole number of at least 1", id="block zero"),
        pytest.param({"block": (4, 2.5)}, "block=.4, 2.5. must be a whole number", id="block fraction"),
        pytest.param({"dilation": -1}, "dilation=-1 must be a whole number of at least 0", id="dilation"),
        pytest.param({"bucket": 1.0}, "bucket=1.0 must be None or a factor above 1", id="bucket"),
        pytest.param({"bucket": float("inf")}, "bucket=inf must be None or a factor above 1", id="endless bucket"),
        pytest.param({"bucket": 2.0, "geometry": "tile"}, "bucket=2.0 needs geometry='level'", id="bucket of tiles"),
        pytest.param({"dense_above": 1.5}, "dense_above=1.5 must be None or a share", id="dense_above"),
        pytest.param(
            {"state_dtype": torch.int8}, "state_dtype=torch.int8 must be a floating-point dtype", id="state_dtype"
        ),
    ],
)
def test_policy_value(change, message):
    with pytest.raises(PolicyError, match=message):
        dataclasses.replace(sige.policy("incremental"), **change)


@pytest.mark.parametrize("block", [65, 128])
def test_block_that_does_not_fit(unet, small, images, block):
    session = sige.Session(unet, small("incremental", block=block))
    with session.record():
        unet(images[0], 500)
    with (
        pytest.raises(PolicyError, match=f"block={block} does not fit a 64x64 map: choose a smaller one"),
        session.edit(images[2]),
    ):
        pass


@pytest.mark.parametrize(
    "mask, message",
    [
        pytest.param(torch.ones(64, 64), "the edit mask is torch.float32: give a torch.bool tensor", id="dtype"),
        pytest.param([[True]], "the edit mask is list: give a torch.bool tensor", id="type"),
        pytest.param(torch.ones(1, 1, 64, 64, dtype=torch.bool), r"shape \(1, 1, 64, 64\): give \(H, W\)", id="rank"),
        pytest.param(
            torch.ones(32, 64, dtype=torch.bool), r"mask is \(32, 64\), the recording has sample", id="resolution"
        ),
        pytest.param(torch.ones(2, 64, 64, dtype=torch.bool), "mask has batch 2, the recording has sample", id="batch"),
    ],
)
def test_mask(session, mask, message):
    with pytest.raises(MaskError, match=message), session.edit(mask):
        pass


def test_empty_mask_returns_the_recording_for_nothing(session, unet, images):
    with torch.no_grad():
        before = session._steps[0].output[0]
    with (
        pytest.warns(UserWarning, match="the edit mask is empty"),
        session.edit(torch.zeros(64, 64, dtype=torch.bool)) as effect,
    ):
        after = unet(images[0], 500).sample
    assert (torch.equal(after, before), effect.macs, bool(effect.active.any())) == (True, 0, False)


def test_edit_before_record(unet, images):
    with pytest.raises(RecordingError, match="nothing is recorded yet: run the model once inside session.record"):
        with sige.Session(unet).edit(images[2]):
            pass


def test_recording_without_a_forward(unet):
    with pytest.raises(RecordingError, match="nothing was recorded"), sige.Session(unet).record():
        pass


@pytest.mark.parametrize("verb", ["undo", "commit"])
def test_nothing_to_take_back_or_keep(session, verb):
    with pytest.raises(RecordingError, match=f"there is no edit to {verb}"):
        getattr(session, verb)()


def test_nested_blocks(session, images):
    with pytest.raises(RecordingError, match="cannot be nested"), session.edit(images[2]), session.record():
        pass


def test_changed_time_step(session, unet, images):
    with (
        pytest.raises(ChangedInputError, match="input 'timestep' is 400, the recording has 500"),
        session.edit(images[2]),
    ):
        unet(images[1], 400)


def test_declared_change_is_allowed(session, unet, images):
    with session.edit(images[2], changed=("timestep",)):
        assert unet(images[1], 400).sample.shape == images[1].shape


def test_input_changed_outside_the_mask(session, unet, images):
    edited = images[1].clone()
    edited[0, 1, 3, 5] += 1
    with pytest.raises(
        ChangedInputError, match="at 1 positions outside the mask, the first at row 3, column 5 of sample 0"
    ):
        with session.edit(images[2]):
            unet(edited, 500)


def test_input_of_another_shape(session, unet, images):
    with pytest.raises(ChangedInputError, match=r"input 'sample' is \(2, 3, 64, 64\)"), session.edit(images[2]):
        unet(images[1].repeat(2, 1, 1, 1), 500)


def test_additional_argument(session, unet, images):
    with pytest.raises(ChangedInputError, match="only the edit has an input 'class_labels'"), session.edit(images[2]):
        unet(images[1], 500, class_labels=torch.zeros(1))


def test_more_forwards_than_recorded(session, unet, images):
    with (
        pytest.raises(ChangedInputError, match="forward 2 of the edit has no recording: 1 were recorded"),
        session.edit(images[2]),
    ):
        unet(images[1], 500)
        unet(images[1], 500)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["NaN", "infinity"])
def test_non_finite_input(session, unet, images, value):
    edited = images[1].clone()
    edited[0, 0, 30, 30] = value
    with (
        pytest.raises(NonFiniteError, match="input 'sample' of shape .* holds NaN or infinity"),
        session.edit(images[2]),
    ):
        unet(edited, 500)


def test_non_finite_recording(unet, images):
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"), sige.Session(unet).record():
        unet(images[0] / 0, 500)


class Forked(nn.Module):
    """Takes the second convolution only while ``fork`` is off."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fork = False

    def forward(self, x):
        x = self.first(x)
        return (
            x
            if self.fork == "short"
            else (self.first if self.fork == "other" else self.second)(x[:, :3] if self.fork else x)
        )


@pytest.mark.parametrize("fork", ["other", "short"])
def test_another_path_through_the_model(small, images, fork):
    model = Forked()
    session = sige.Session(model, small("incremental"))
    with session.record():
        model(images[0])
    model.fork = fork
    with pytest.raises(PathError, match="path through the model"), session.edit(images[2]):
        model(images[1])


def test_remembered_map_modified_from_outside(session, images):
    entry = next(entry for entry in session._steps[0].entries.values() if entry.kind == "conv_input")
    entry.value.add_(1)
    with pytest.raises(RecordingError, match="was modified in place from outside"), session.edit(images[2]):
        pass


@pytest.mark.parametrize(
    "wrap, message",
    [
        pytest.param(
            lambda m: torch.compile(m), "is a OptimizedModule: give the session its ._orig_mod", id="compiled"
        ),
        pytest.param(nn.DataParallel, "is a DataParallel: give the session its .module", id="data parallel"),
        pytest.param(lambda m: "unet", "str is neither a torch module nor a pipeline", id="not a model"),
    ],
)
def test_model_that_cannot_be_followed(unet, wrap, message):
    with pytest.raises(ModelError, match=message):
        sige.Session(wrap(unet))


def test_model_compiled_in_place():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    model[0].compile()
    with pytest.raises(ModelError, match="0 is compiled: give the session the model before compile"):
        sige.Session(model)


def test_autocast_must_agree(unet, small, images):
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(images[0], 500)
    with (
        pytest.raises(ChangedInputError, match="autocast"),
        torch.autocast("cpu", torch.bfloat16),
        session.edit(images[2]),
    ):
        unet(images[1], 500)


def test_active_tensor_kept_beyond_the_forward(session, unet, images):
    kept = []
    hook = unet.down_blocks[0].register_forward_hook(lambda _m, _i, output: kept.append(output[0]))
    with session.edit(images[2]):
        unet(images[1], 500)
    hook.remove()
    with pytest.raises(RuntimeError, match="active tensors live only inside the model's own forward pass"):
        kept[0] + 1


# -- masks finer than the map --


@pytest.fixture
def latents():
    """A session that has recorded a model of 16x16 latents, the model and the latents."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 16, 16)
    session = sige.Session(model, sige.Policy(block=1, min_resolution=1))
    with session.record():
        model(x)
    return session, model, x


def pixel(side, y, x):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[y, x] = True
    return mask


@pytest.mark.parametrize(
    "size",
    [(24, 24), (40, 40), (16, 32), (32, 16), (8, 8), (128, 64)],
    ids=["1.5", "2.5", "one side", "other side", "coarser", "unequal factors"],
)
def test_mask_must_be_finer_by_a_whole_factor(latents, size):
    message = rf"^the edit mask is \({size[0]}, {size[1]}\), the recording has input \(2, 4, 16, 16\): give .* finer by a whole"
    with pytest.raises(MaskError, match=message), latents[0].edit(torch.ones(size, dtype=torch.bool)):
        pass


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_a_cell_may_change_where_any_pixel_that_it_covers_is_masked(latents, factor):
    session, model, x = latents
    other = x.clone()
    other[:, :, 5, 9] += 1
    with session.edit(pixel(16 * factor, 5 * factor + factor - 1, 9 * factor)) as effect:
        model(other)
    assert effect.active.nonzero().tolist() == [[sample, 5, 9] for sample in (0, 1)]


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_a_cell_beside_a_finer_mask_must_not_change(latents, factor):
    session, model, x = latents
    other = x.clone()
    other[1, :, 5, 10] += 1
    message = "at 1 positions outside the mask, the first at row 5, column 10 of sample 1"
    with pytest.raises(ChangedInputError, match=message):
        with session.edit(pixel(16 * factor, 5 * factor, 9 * factor + factor - 1)):
            model(other)


def test_a_finer_mask_may_be_one_a_sample(latents):
    session, model, x = latents
    other = x.clone()
    other[1, :, 5, 10] += 1
    with session.edit(torch.stack([pixel(128, 0, 0), pixel(128, 47, 80)])) as effect:
        model(other)
    assert effect.active.nonzero().tolist() == [[0, 0, 0], [1, 5, 10]]


# -- what the caller passed in is the caller's --


class Labelled(nn.Module):
    """Scales and shifts a map by convolutions of the label map at its resolution, twice, as SPADE does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.gamma, self.beta = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, labels):
        x = self.first(nn.functional.interpolate(labels, size=(16, 16)))
        for side in (16, 32, 64):
            x = nn.functional.interpolate(x, size=(side, side))
            seen = nn.functional.interpolate(labels, size=(side, side))
            x = x * (1 + self.gamma(seen)) + self.beta(seen)
        return self.last(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", ["incremental", "sige", "fisedit"])
@pytest.mark.parametrize("make", [Labelled, lambda: nn.Conv2d(4, 4, 3, padding=1)], ids=["labels", "one convolution"])
def test_what_the_caller_passed_in_is_never_written_to(small, make, name, layout):
    model, generator = make().eval(), torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 64, 64, generator=generator).contiguous(memory_format=layout)
    masks = [torch.zeros(64, 64, dtype=torch.bool) for _ in range(2)]
    masks[0][8:14, 40:50] = masks[1][30:36, 10:20] = True
    others = [torch.where(mask, -x, x).contiguous(memory_format=layout) for mask in masks]
    given = [x, *others]
    copies = [tensor.clone() for tensor in given]
    session = sige.Session(model, small(name, min_resolution=4, upsample_min_source=4, dense_modules=()))
    with session.record():
        model(x)
    for number in (0, 1, 0):
        with session.edit(masks[number]):
            model(others[number])
        session.undo()
    with session.edit(masks[0]):
        model(others[0])
    session.commit()
    with session.edit(masks[0]):
        model(x)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies))


@pytest.mark.parametrize("name", ["incremental", "sige"])
def test_what_the_caller_does_to_its_tensors_later_changes_nothing(small, name):
    model, x = Labelled().eval(), torch.randn(1, 4, 64, 64).contiguous(memory_format=torch.channels_last)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:14, 40:50] = True
    other, outputs = torch.where(mask, -x, x), []
    for spoilt in (False, True):
        session, given = sige.Session(model, small(name, min_resolution=4)), x.clone()
        with session.record():
            output = model(given)
        if spoilt:
            given.fill_(7), output.fill_(7)
        with session.edit(mask):
            outputs.append(model(other))
    assert torch.equal(*outputs)
