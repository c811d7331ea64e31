"""Convolutions of every geometry, plain and behind padding and up-sampling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.kernels import ops


class Net(nn.Module):
    """A 3x3 convolution, then ``body(self, x)`` with the modules given."""

    def __init__(self, body, **modules):
        super().__init__()
        self.first, self.body = nn.Conv2d(8, 8, 3, padding=1), body
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.body(self, self.first(x))


def conv(*args, **kwargs):
    return lambda: Net(lambda net, x: net.second(x), second=nn.Conv2d(*args, **kwargs))


def padded_down(net, x):
    return net.second(F.pad(x, (0, 1, 0, 1)))


def down_up(net, x):
    return net.third(F.interpolate(F.silu(net.second(x)), scale_factor=2.0)) + x


def of_tokens(net, x):
    return net.second(x.flatten(2)).unflatten(2, x.shape[2:])


def channels_in_the_batch(net, x):
    """One filter for every channel, as models that blur do it."""
    return net.second(x.reshape(-1, 1, *x.shape[2:])).view(x.shape)


def written_to_behind(net, x):
    """The convolution leads to a level that runs dense, where the model writes to its result."""
    return F.relu(net.second(x), inplace=True) + 1


CASES = [
    pytest.param(lambda: Net(of_tokens, second=nn.Conv1d(8, 16, 1)), id="one tap on tokens"),
    pytest.param(conv(8, 16, 3, padding=1), id="3x3"),
    pytest.param(conv(8, 16, 3, padding=1, bias=False), id="3x3 without bias"),
    pytest.param(conv(8, 16, 1), id="1x1"),
    pytest.param(conv(8, 16, 1, groups=4), id="1x1 groups"),
    pytest.param(conv(8, 8, 3, padding=1, groups=8), id="depthwise"),
    pytest.param(conv(8, 16, 3, padding=1, groups=2), id="groups"),
    pytest.param(conv(8, 16, 3, stride=2, padding=1), id="stride 2"),
    pytest.param(conv(8, 16, 1, stride=2), id="1x1 stride 2"),
    pytest.param(conv(8, 16, 4, stride=2, padding=1), id="4x4 stride 2"),
    pytest.param(conv(8, 16, 3, dilation=2, padding=2), id="dilation"),
    pytest.param(conv(8, 16, 5, padding=2), id="5x5"),
    pytest.param(conv(8, 16, (1, 5), padding=(0, 2)), id="1x5"),
    pytest.param(conv(8, 16, 3, padding="same"), id="same"),
    pytest.param(conv(8, 16, 4, padding="same"), id="same, even kernel"),
    pytest.param(conv(8, 16, 3, padding="valid", stride=2), id="valid, stride 2"),
    pytest.param(lambda: Net(padded_down, second=nn.Conv2d(8, 16, 3, stride=2)), id="asymmetric padding, stride 2"),
    pytest.param(
        lambda: Net(lambda net, x: net.second(F.pad(x, (2, 1, 0, 2))), second=nn.Conv2d(8, 16, (3, 4))),
        id="asymmetric padding, every side",
    ),
    pytest.param(
        lambda: Net(down_up, second=nn.Conv2d(8, 8, 3, stride=2, padding=1), third=nn.Conv2d(8, 8, 3, padding=1)),
        id="behind nearest up-sampling",
    ),
]
GEOMETRIES = pytest.mark.parametrize("geometry", ["level", "window"])


@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_unchanged_input_returns_the_recording(trial, make, geometry):
    done = trial(make, geometry, "same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide")
    assert (done.error() < 1e-4, bool(done.effect.active.all())) == (True, False)


@pytest.mark.parametrize("make", CASES)
def test_batch_with_different_masks_equals_the_dense_model(trial, make):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:15, 4:9] = True
    assert trial(make, mask=masks, batch=2, dilation=7).error() < 1e-4


@pytest.mark.parametrize("name, sparse", [("second", False), ("other", True)])
def test_module_named_dense_runs_dense(trial, name, sparse):
    done = trial(conv(8, 16, 3, padding=1), mask="small", dense_modules=(name,))
    assert bool(done.effect.active.all()) is not sparse


def test_level_below_the_minimum_runs_dense(trial):
    make = conv(8, 16, 3, padding=1)
    assert trial(make, mask="small", min_resolution=33).effect.active.all()


def test_up_sampling_from_below_the_minimum_source_runs_dense(trial):
    make = CASES[-1].values[0]
    done = [trial(make, mask="small", upsample_min_source=least) for least in (16, 17)]
    assert done[0].effect.macs < done[1].effect.macs


def test_remembered_maps_may_be_narrower_than_the_weights(trial):
    done = trial(conv(8, 16, 3, padding=1), mask="wide", state_dtype=torch.bfloat16)
    assert (done.after.dtype, 0 < done.error() < 1e-2) == (torch.float32, True)


def test_macs_are_those_of_the_active_positions(trial):
    done = trial(conv(8, 16, 3, padding=1), mask="small", dilation=0)
    active = int(done.effect.active.sum())
    assert done.effect.macs == active * 9 * 8 * (8 + 16)


def test_unequal_strides_need_level_geometry(trial):
    make = conv(8, 16, 3, stride=(2, 1), padding=1)
    with pytest.raises(sige.SigeError, match="use geometry='level'"):
        trial(make, "window")


@pytest.mark.parametrize("mask", ["full", "wide"])
@GEOMETRIES
@pytest.mark.parametrize("make", CASES)
def test_whole_tiles_equal_one_position_at_a_time(trial, make, geometry, mask):
    outputs = [trial(make, geometry, mask, overhang=False, whole_tiles=whole).after for whole in ("always", "never")]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5


@pytest.fixture
def tiled(monkeypatch):
    """(index, rows that its ``tiling`` says it names) of every convolution that says how its positions lie."""
    seen, convolve = [], ops.conv_rows

    def noted(source, index, weight, bias, groups, tiling=None):
        if tiling is not None:
            height, width, tall, wide = tiling
            place = index.view(-1, tall, wide, *weight.shape[2:])[:, 0, 0, weight.shape[2] // 2, weight.shape[3] // 2]
            sample, y, x = place // (height * width), place // width % height, place % width
            taps = [
                torch.arange(side + kernel - 1) - kernel // 2 for side, kernel in zip((tall, wide), weight.shape[2:])
            ]
            down = (y[:, None] + taps[0])[:, :, None].expand(-1, -1, len(taps[1]))
            across = (x[:, None] + taps[1])[:, None, :].expand_as(down)
            inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
            box = torch.where(inside, (sample[:, None, None] * height + down) * width + across, -1)
            read = box.unfold(1, weight.shape[2], 1).unfold(2, weight.shape[3], 1)
            seen.append((index, read.reshape(index.shape), len(source) % (height * width)))
        return convolve(source, index, weight, bias, groups, tiling)

    monkeypatch.setattr(ops, "conv_rows", noted)
    return seen


@pytest.mark.parametrize("mask", ["small", "wide"])
@pytest.mark.parametrize("geometry", ["level", "window", "tile"])
@pytest.mark.parametrize("make", CASES)
def test_whoever_says_how_positions_lie_is_right(trial, tiled, make, geometry, mask):
    trial(make, geometry, mask, overhang=False, whole_tiles="never")
    assert all(torch.equal(index, read) and not over for index, read, over in tiled)


@pytest.mark.parametrize("geometry", ["level", "window", "tile"])
def test_positions_in_whole_tiles_are_said_to_lie_so(trial, tiled, geometry):
    trial(conv(8, 16, 5, padding=2), geometry, "small", overhang=False, whole_tiles="never")
    assert len(tiled) == 2


def test_channels_that_stand_in_the_batch_run_dense(trial):
    make = lambda: Net(channels_in_the_batch, second=nn.Conv2d(1, 1, 3, padding=1))  # noqa: E731
    assert [trial(make, mask=mask, batch=2).error() < 1e-4 for mask in ("full", "wide")] == [True, True]


@pytest.mark.parametrize("mask", ["full", "small", "same"])
def test_a_result_of_a_dense_level_may_be_written_to(trial, mask):
    done = trial(
        lambda: Net(written_to_behind, second=nn.Conv2d(8, 8, 3, padding=1, stride=4)), mask=mask, min_resolution=9
    )
    again = done.session.model
    with torch.no_grad():
        assert (done.before - again(done.original)).abs().max() < 1e-5


def test_another_filter_of_tokens_runs_dense_and_is_named(trial):
    make = lambda: Net(of_tokens, second=nn.Conv1d(8, 16, 3, padding=1))  # noqa: E731
    done = trial(make)
    assert (done.error() < 1e-4, ["conv1d" in name for name in done.effect.fallbacks]) == (True, [True])
