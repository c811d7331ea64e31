"""A smaller U-Net than the rest of the engine's tests use, and a recording of four steps of it."""

import pytest
import torch

import sige

TIMES = (900, 700, 500, 100)


@pytest.fixture(scope="session")
def unet():
    """64x64, with attention at the level of 16."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=64,
        layers_per_block=1,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()


@pytest.fixture
def recorded(unet, small, images):
    """``recorded(**changes)``: a session of four steps; ``session`` holds arguments of the session, the rest are dials."""

    def make(session=None, policy="incremental", **changes):
        made = sige.Session(unet, small(policy, **changes), **session or {})
        with torch.no_grad(), made.record():
            for t in TIMES:
                unet(images[0], t)
        return made

    return make


@pytest.fixture
def edit(unet, images):
    """``edit(session)``: the outputs of an edit of all steps: that of ``images``, or another."""

    def run(session, x=images[1], mask=images[2]):
        with torch.no_grad(), session.edit(mask):
            return [unet(x, t).sample for t in TIMES]

    return run
