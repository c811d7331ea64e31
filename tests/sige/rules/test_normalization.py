"""Group normalisation by policy: exact statistics, the recording's, and the oracle."""

import dataclasses

import pytest
import torch
from torch import nn

import sige
from sige.rules import normalization

BODIES = {
    "affine": lambda: nn.GroupNorm(4, 8),
    "not affine": lambda: nn.GroupNorm(4, 8, affine=False),
    "one group": lambda: nn.GroupNorm(1, 8),
    "a group each": lambda: nn.GroupNorm(8, 8),
}


class OnTokens(nn.Module):
    """GroupNorm of a fused map (B, C, H*W), as attention blocks do it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, 8)

    def forward(self, x):
        return self.norm(x.flatten(2)).view(x.shape)


BODIES["fused positions"] = OnTokens


def net(body, stride=1):
    def make():
        model = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, stride=stride), BODIES[body](), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
        return model

    return make


CASES = pytest.mark.parametrize("body", list(BODIES))
GEOMETRIES = pytest.mark.parametrize("geometry", ["level", "window"])


@CASES
@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "dense"])
@pytest.mark.parametrize("stride", [1, 2])
def test_full_mask_equals_the_dense_model(trial, body, geometry, norm, stride):
    done = trial(net(body, stride), geometry, norm=norm)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@CASES
@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "dense", "cached"])
def test_small_mask_leaves_the_rest_alone(trial, body, geometry, norm):
    assert trial(net(body), geometry, "small", norm=norm).same_outside()


@CASES
@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "dense", "cached"])
def test_unchanged_input_returns_the_recording(trial, body, geometry, norm):
    done = trial(net(body), geometry, "same", norm=norm)
    assert (done.after - done.before).abs().max() < 1e-5


def statistics(trial, body, geometry, mask, **changes):
    """Worst difference between incremental and dense statistics' effect at the active positions, with the norm last."""

    def make():
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), BODIES[body]())

    done = trial(make, geometry, mask, dilation=7, **changes)
    active = done.effect.active[:, None].expand_as(done.after)
    return (done.after - done.dense)[active].abs().max().item()


@CASES
@GEOMETRIES
@pytest.mark.parametrize("block", [1, 4])
def test_incremental_statistics_are_the_whole_edited_maps(trial, body, geometry, block):
    assert statistics(trial, body, geometry, "small", block=block) < 1e-4


def test_rounding_of_sums_in_16_bits_does_not_outlive_an_edit():
    """Brightened a hundredfold and taken back, edit after edit: the totals are those of the sums that are remembered."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3, padding=1)).eval()
    x, mask = torch.randn(1, 8, 32, 32), torch.zeros(32, 32, dtype=torch.bool)
    mask[4:12, 8:20] = True
    policy = dataclasses.replace(
        sige.policy("incremental"), min_resolution=1, dense_above=None, state_dtype=torch.bfloat16
    )
    session = sige.Session(model, policy)
    with torch.no_grad():
        with session.record():
            model(x)
        (entry,) = [
            e for e in session._steps[0].entries.values() if e.kind == "norm_sums" and isinstance(e.value, tuple)
        ]
        before = entry.value[1].clone()
        for edited in (x * torch.where(mask, 100, 1), x) * 3:
            with session.edit(mask):
                model(edited)
            session.commit()
    change = (entry.value[1] - before).abs().max() / before.abs().max()
    assert change < 1e-2


@GEOMETRIES
def test_statistics_of_each_sample_are_its_own(trial, geometry):
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:5, 27:31] = masks[1, 12:25, 4:9] = True
    assert statistics(trial, "affine", geometry, masks, batch=2) < 1e-4


@CASES
def test_cached_statistics_are_the_recordings(trial, body):
    done = trial(net(body), mask="full", norm="cached")
    assert done.error() > 1e-4


@pytest.mark.parametrize("norm", ["incremental", "cached"])
def test_dense_level_between_sparse_ones(trial, norm):
    done = trial(net("affine", 2), mask="same", norm=norm, min_resolution=20)
    assert (done.after - done.before).abs().max() < 1e-5


def test_plain_level_with_incremental_statistics_is_exact(trial):
    assert trial(net("affine", 2), mask="wide", min_resolution=20, norm="incremental").error() < 1e-4


# -- batch norm --


def with_statistics(norm):
    """A batch norm with running statistics as after training."""
    generator = torch.Generator().manual_seed(5)
    norm.running_mean.copy_(torch.randn(8, generator=generator))
    norm.running_var.copy_(torch.rand(8, generator=generator) + 0.5)
    return norm


def between(make, stride=1):
    """``make()`` between two convolutions."""

    def build():
        first, last = nn.Conv2d(8, 8, 3, padding=1, stride=stride), nn.Conv2d(8, 8, 3, padding=1)
        return nn.Sequential(first, make(), nn.ReLU(), last)

    return build


BATCH = [
    pytest.param(between(lambda: with_statistics(nn.BatchNorm2d(8))), id="affine"),
    pytest.param(between(lambda: with_statistics(nn.BatchNorm2d(8, affine=False))), id="not affine"),
    pytest.param(between(lambda: with_statistics(nn.BatchNorm2d(8)), 2), id="stride 2"),
    pytest.param(between(lambda: with_statistics(nn.InstanceNorm2d(8, track_running_stats=True))), id="instance norm"),
]


@GEOMETRIES
@pytest.mark.parametrize("make", BATCH)
def test_batch_norm_under_a_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@GEOMETRIES
@pytest.mark.parametrize("make", BATCH)
def test_batch_norm_leaves_the_rest_alone(trial, make, geometry):
    assert trial(make, geometry, "small").same_outside()


@pytest.mark.parametrize("norm", ["incremental", "dense", "cached"])
@pytest.mark.parametrize("make", BATCH)
def test_batch_norm_is_the_dense_models_whatever_the_policy(trial, make, norm):
    assert trial(make, mask="wide", norm=norm).error() < 1e-4


def test_batch_norm_remembers_nothing(trial):
    kinds = trial(BATCH[0].values[0], mask="small").session.state_bytes()
    assert not {"norm_sums", "norm_stats", "fallback"} & kinds.keys()


@pytest.mark.parametrize("changed", ["running_mean", "running_var", "weight", "bias"])
def test_a_batch_norm_that_is_written_to_is_what_it_is_now(changed):
    norm, rows = (
        with_statistics(nn.BatchNorm2d(8)).eval(),
        torch.randn(5, 8, generator=torch.Generator().manual_seed(1)),
    )
    layer = norm.running_mean, norm.running_var, norm.weight, norm.bias
    first, again = (normalization._of_running(*layer, norm.eps, rows.dtype) for _ in range(2))
    with torch.no_grad():
        getattr(norm, changed).mul_(2)
        scale, shift = normalization._of_running(*layer, norm.eps, rows.dtype)
        exact = norm(rows[:, :, None, None])[:, :, 0, 0]
    assert (first is again, torch.allclose(rows * scale + shift, exact, atol=1e-6)) == (True, True)


class OnColumns(nn.Module):
    """Batch norm of a fused map (B, C, H*W)."""

    def __init__(self):
        super().__init__()
        self.norm = with_statistics(nn.BatchNorm1d(8))

    def forward(self, x):
        return self.norm(x.flatten(2)).view(x.shape)


def test_batch_norm_of_fused_positions_equals_the_dense_model(trial):
    done = trial(between(OnColumns))
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


class Training(nn.Module):
    """Batch norm with the statistics of the batch at hand, as generators are sometimes run."""

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("mask", ["full", "small"])
def test_batch_norm_with_the_batchs_statistics_is_dense_and_named(trial, mask):
    done = trial(between(Training), mask=mask)
    right = done.error() < 1e-4 if mask == "full" else done.same_outside()
    assert (right, done.effect.fallbacks) == (True, ["batch_norm at 1"])


# -- instance norm --

INSTANCE = [
    pytest.param(lambda: nn.InstanceNorm2d(8), id="plain"),
    pytest.param(lambda: nn.InstanceNorm2d(8, affine=True), id="affine"),
]


@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "dense"])
@pytest.mark.parametrize("make", INSTANCE)
def test_instance_norm_under_a_full_mask_equals_the_dense_model(trial, make, norm, geometry):
    done = trial(between(make), geometry, norm=norm, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "cached"])
@pytest.mark.parametrize("make", INSTANCE)
def test_instance_norm_leaves_the_rest_alone(trial, make, norm, geometry):
    assert trial(between(make), geometry, "small", norm=norm).same_outside()


@GEOMETRIES
@pytest.mark.parametrize("norm", ["incremental", "cached"])
@pytest.mark.parametrize("make", INSTANCE)
def test_instance_norm_of_an_unchanged_input_is_the_recordings(trial, make, norm, geometry):
    done = trial(between(make), geometry, "same", norm=norm)
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", INSTANCE)
def test_instance_norms_incremental_statistics_are_the_whole_edited_maps(trial, make, batch):
    done = trial(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), make()), mask="wide", batch=batch)
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-4


@pytest.mark.parametrize("make", INSTANCE)
def test_instance_norms_cached_statistics_are_the_recordings(trial, make):
    done = trial(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), make()), norm="cached")
    plain = done.session.model[0]
    with torch.no_grad():
        old, new = plain(done.original), plain(done.edited)
        rstd = (old.var((2, 3), correction=0, keepdim=True) + 1e-5).rsqrt()
        expected = (new - old.mean((2, 3), keepdim=True)) * rstd
    assert (done.after - expected).abs().max() < 1e-4


def test_instance_norm_keeps_its_digits_about_a_large_mean(trial):
    """Channels that vary by a thousandth of their mean."""

    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8)

        def forward(self, x):
            return self.norm(self.first(x) * 1e-3 + 1)

    done = trial(Far, mask="wide")
    active = done.effect.active[:, None].expand_as(done.after)
    assert (done.after - done.dense)[active].abs().max() < 1e-2


def test_channels_that_stand_in_the_batch_run_dense(trial):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 4)

        def forward(self, x):
            x = self.first(x)
            return self.norm(x.reshape(-1, 4, *x.shape[2:])).view(x.shape)

    assert trial(Folded, mask="full", batch=2).error() < 1e-4
