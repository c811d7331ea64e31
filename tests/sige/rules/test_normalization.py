"""Group normalisation by policy: exact statistics, the recording's, and the oracle."""

import pytest
import torch
from torch import nn

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
