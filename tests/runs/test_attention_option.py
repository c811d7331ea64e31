"""The option ``attention`` of a method."""

import pytest
import torch

from sige.runs.errors import UserError
from sige.runs.methods import attention, dense, session

STABLE_DIFFUSION = {"loader": "sige.runs.models.stable_diffusion", "name": "sd"}


@pytest.mark.parametrize("method", [dense, session], ids=["dense", "session"])
@pytest.mark.parametrize(
    "asked, model, message",
    [
        pytest.param(
            "sliced", STABLE_DIFFUSION, "unknown attention 'sliced' of a method; choose unfused", id="unknown"
        ),
        pytest.param(
            "unfused", {"loader": "other", "name": "gaugan"}, "not in gaugan; leave attention=unfused out", id="model"
        ),
    ],
)
def test_it_is_checked_before_anything_runs(method, asked, model, message):
    with pytest.raises(UserError, match=message):
        method.check({"policy": "incremental", "attention": asked}, model)


@pytest.mark.parametrize("asked", [None, "unfused"])
def test_it_is_taken_for_stable_diffusion(asked):
    attention.check({"attention": asked}, STABLE_DIFFUSION)


def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("asked, name", [(None, "AttnProcessor2_0"), ("unfused", "AttnProcessor")])
def test_it_exchanges_the_attention(asked, name):
    module = unet()
    attention.exchange(module, {"attention": asked})
    assert {type(processor).__name__ for processor in module.attn_processors.values()} == {name}


def test_unfused_attention_is_edited_like_fused():
    """diffusers' own unfused attention: heads folded into the batch, ``baddbmm``, softmax, ``bmm``."""
    import sige

    generator = torch.Generator().manual_seed(1)
    original, other = (torch.randn(2, 4, 32, 32, generator=generator) for _ in range(2))
    text, mask = torch.randn(2, 7, 16, generator=generator), torch.zeros(32, 32, dtype=torch.bool)
    mask[9:15, 12:20] = True
    found = []
    for asked in (None, "unfused"):
        module = unet()
        attention.exchange(module, {"attention": asked})
        edit = sige.Session(module, sige.policy("incremental"))
        with edit.record():
            module(original, 500, text)
        with edit.edit(mask) as effect:
            found.append((module(torch.where(mask, other, original), 500, text).sample, effect.macs, effect.fallbacks))
    (one, macs, _), (two, others, fallbacks) = found
    assert ((one - two).abs().max() < 1e-4, macs == others, fallbacks) == (True, True, [])
