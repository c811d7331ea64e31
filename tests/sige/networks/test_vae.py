"""Stable Diffusion's picture encoder and decoder in a session: small configurations of diffusers' AutoencoderKL."""

import dataclasses

import pytest
import torch

import sige

SIDE, FACTOR = 64, 4  # pixels; pixels a latent


def halves():
    from diffusers import AutoencoderKL

    from sige.runs.models import vae

    torch.manual_seed(0)
    whole = AutoencoderKL(
        block_out_channels=(32, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, norm_num_groups=8, latent_channels=4,
    ).eval().requires_grad_(False)  # fmt: skip
    return {"encoder": vae.Encoder(whole), "decoder": vae.Decoder(whole)}


ENDS = {
    "encoder": ("encoder.conv_in", "encoder.conv_norm_out", "encoder.conv_out", "quant_conv"),
    "decoder": ("post_quant_conv", "decoder.conv_in", "decoder.conv_norm_out", "decoder.conv_out"),
}


@pytest.fixture(scope="module")
def modules():
    return halves()


@pytest.fixture(params=ENDS)
def half(request, modules):
    return request.param, modules[request.param]


def policy(name, part, **changes):
    if name == "incremental":
        dials = dict(min_resolution=4, upsample_min_source=0, dense_above=None)
    else:
        dials = dict(min_resolution=16, upsample_min_source=0, dense_modules=ENDS[part], token_block=4, kv="remembered")
    return dataclasses.replace(sige.policy(name), **{**dials, **changes})


POLICIES = ["incremental", "sige", "sige_public"]
SMALL = torch.zeros(SIDE, SIDE, dtype=torch.bool)
SMALL[20:36, 12:28] = True
EVERYTHING = torch.ones_like(SMALL)


def pair(part, mask):
    """(original, edited) inputs of a half for a mask of the picture."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, 3, SIDE, SIDE) if part == "encoder" else (1, 4, SIDE // FACTOR, SIDE // FACTOR)
    original, other = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    cells = mask[None, None].float()
    cells = (cells if part == "encoder" else torch.nn.functional.max_pool2d(cells, FACTOR)) > 0
    return original, torch.where(cells, other, original)


def run(module, setting, mask, original, edited):
    session = sige.Session(module, setting)
    with session.record():
        before = module(original)
    with session.edit(mask) as effect:
        after = module(edited)
    return before, after, effect


def test_full_mask_equals_the_dense_model(half, relative):
    part, module = half
    original, edited = pair(part, EVERYTHING)
    _, after, effect = run(module, policy("incremental", part), EVERYTHING, original, edited)
    assert (relative(after, module(edited)) < 1e-4, effect.fallbacks) == (True, [])


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_falls_back(half, name):
    part, module = half
    _, _, effect = run(module, policy(name, part), SMALL, *pair(part, SMALL))
    assert effect.fallbacks == []


@pytest.mark.parametrize("name", POLICIES)
def test_a_small_edit_costs_less(half, name):
    part, module = half
    _, _, effect = run(module, policy(name, part), SMALL, *pair(part, SMALL))
    assert 0 < effect.macs < 0.7 * effect.dense_macs


@pytest.mark.parametrize("name", POLICIES)
def test_an_unchanged_input_gives_the_recording(half, name, relative):
    part, module = half
    original, _ = pair(part, SMALL)
    before, after, _ = run(module, policy(name, part), SMALL, original, original)
    assert relative(after, before) < 1e-5


@pytest.mark.parametrize("name", POLICIES)
def test_outside_what_is_active_the_recording_stands_bit_for_bit(half, name):
    part, module = half
    before, after, effect = run(module, policy(name, part), SMALL, *pair(part, SMALL))
    outside = ~effect.active[:, None].expand_as(before)
    assert torch.equal(after[outside], before[outside])


def test_an_edit_follows_the_dense_model(half, relative):
    part, module = half
    original, edited = pair(part, SMALL)
    before, after, effect = run(module, policy("incremental", part), SMALL, original, edited)
    inside, wanted = effect.active[:, None].expand_as(before), module(edited)
    assert relative(after[inside], wanted[inside]) < 0.5 * relative(before[inside], wanted[inside])


@pytest.mark.parametrize("name", POLICIES)
def test_counts_on_meta_tensors_are_those_of_the_cpu(half, name):
    part, module = half
    original, edited = pair(part, SMALL)
    _, _, effect = run(module, policy(name, part), SMALL, original, edited)
    shapes = halves()[part].to("meta")
    _, _, counted = run(shapes, policy(name, part), SMALL, original.to("meta"), original.to("meta"))
    assert (counted.macs, counted.dense_macs) == (effect.macs, effect.dense_macs)
