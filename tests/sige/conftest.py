"""A small stock diffusers U-Net and edits of it, shared by the engine's tests."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

import sige

sys.path.insert(0, str(Path(__file__).parent))  # for drawn.py and its like

SIDE = 64


def small_unet(**changes):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    settings = dict(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        norm_eps=1e-6,
        downsample_padding=0,
        attention_head_dim=None,
    )
    return UNet2DModel(**{**settings, **changes}).eval()


@pytest.fixture(scope="session")
def unet():
    """Church-like U-Net of some 10^5 parameters, 64x64."""
    return small_unet()


@pytest.fixture
def small():
    """``small(name, **changes)``: a named policy with its minimum resolution scaled down to the small U-Net."""

    def make(name, **changes):
        policy = sige.policy(name)
        scaled = {
            "min_resolution": min(policy.min_resolution, 16),
            "upsample_min_source": min(policy.upsample_min_source, 8),
        }
        if name == "dense":
            scaled = {}
        return dataclasses.replace(policy, **{**scaled, **changes})

    return make


@pytest.fixture
def images():
    """Original (1, 3, 64, 64), edited, and the mask (64, 64) of a rectangle of 26x20 pixels in which they differ."""
    generator = torch.Generator().manual_seed(1)
    original = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[20:40, 24:50] = True
    edited = torch.where(mask, original + torch.randn(original.shape, generator=generator), original)
    return original, edited, mask


@pytest.fixture
def relative():
    """``relative(a, b)``: relative L2 distance of ``a`` from ``b``."""
    return lambda a, b: ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.fixture
def run():
    """``run(session, x, t=500)``: the model's output on ``x``."""

    def call(session, x, t=500):
        return session.model(x, t).sample

    return call
