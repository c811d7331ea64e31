"""diffusers' own conditional U-Net in a session, unmodified: small configurations of every kind of Stable Diffusion."""

import dataclasses
import functools
import warnings

import pytest
import torch

import sige
from sige.errors import ChangedInputError

SIDE, PIXELS, TEXT, WIDTH = 32, 8, 11, 24  # latents; pixels of the mask a latent; tokens and width of the text


def unet(**changes):
    from diffusers import UNet2DConditionModel

    settings = dict(
        sample_size=SIDE, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8, attention_head_dim=4, cross_attention_dim=WIDTH,
    )  # fmt: skip
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**settings, **changes}).eval().requires_grad_(False)


XL = dict(
    use_linear_projection=True, attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 2, 1), addition_embed_type="text_time",
    addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
)  # fmt: skip
# Name -> (changes to the configuration, branches of guidance).
KINDS = {
    "1.4": ({}, 2),
    "2.1": (dict(use_linear_projection=True, attention_head_dim=(2, 4, 4)), 2),
    "in-painting": (dict(in_channels=9), 2),
    "pix2pix": (dict(in_channels=8), 3),
    "xl": (XL, 2),
    "lcm": (dict(time_cond_proj_dim=16), 1),
}
_modules = {}


class Network:
    """A small U-Net, and what goes in beside its latents."""

    def __init__(self, name):
        changes, self.batch = KINDS[name]
        if name not in _modules:
            _modules[name] = unet(**changes)
        self.name, self.module = name, _modules[name]
        generator = torch.Generator().manual_seed(3)
        self.text = torch.randn(self.batch, TEXT, WIDTH, generator=generator)
        self.other_text = torch.randn(self.batch, TEXT, WIDTH, generator=generator)
        self.more = {}
        if name == "xl":
            sizes = torch.tensor([[256.0, 256, 0, 0, 256, 256]]).expand(self.batch, -1)
            pooled = torch.randn(self.batch, 16, generator=generator)
            self.more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        if name == "lcm":
            self.more = {"timestep_cond": torch.randn(1, 16, generator=generator)}
        self.original = self.latents(1)

    def latents(self, seed):
        """A map with all input channels, the same for each branch of guidance."""
        shape = (1, self.module.config.in_channels, SIDE, SIDE)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return x.repeat(self.batch, 1, 1, 1)

    def edited(self, mask):
        """The original with other values in the cells that ``mask`` (pixels) touches."""
        cells = torch.nn.functional.max_pool2d(mask[None, None].float(), PIXELS) > 0
        return torch.where(cells, self.latents(2), self.original)

    def __call__(self, x, text=None):
        text = self.text if text is None else text
        return self.module(x, torch.tensor([501], device=x.device), encoder_hidden_states=text, **self.more).sample


@pytest.fixture(params=KINDS)
def network(request):
    return Network(request.param)


RELEASED = dict(
    min_resolution=8, upsample_min_source=0, dense_modules=("conv_in", "conv_norm_out", "conv_out", "mid_block*"),
    dilation=1, token_block=4, kv="reprojected",
)  # fmt: skip
POLICIES = {
    "incremental": dict(min_resolution=4, upsample_min_source=0, dense_above=None),
    "sige": RELEASED,
    "sige_public": RELEASED,
    "fisedit": dict(min_resolution=16, upsample_min_source=16),
    "fisedit_radical": {},
}


def policy(name, **changes):
    return dataclasses.replace(sige.policy(name), **{**POLICIES[name], **changes})


def box(top, left, height, width):
    """Mask of the picture with a box of these latents."""
    mask = torch.zeros(SIDE * PIXELS, SIDE * PIXELS, dtype=torch.bool)
    mask[top * PIXELS : (top + height) * PIXELS, left * PIXELS : (left + width) * PIXELS] = True
    return mask


EVERYTHING = box(0, 0, SIDE, SIDE)
SMALL = box(6, 9, 8, 7)


def run(network, setting, mask, edited, text=None, **options):
    """Record the original, edit it once. Returns (recording, edit, effect)."""
    session = sige.Session(network.module, setting)
    with session.record():
        before = network(network.original)
    with session.edit(mask, **options) as effect:
        after = network(edited, text)
    return before, after, effect


@functools.lru_cache(maxsize=None)
def small_edit(kind, name):
    """The small edit of a kind under a policy, run once for all that is asked of it."""
    network = Network(kind)
    return run(network, policy(name), SMALL, network.edited(SMALL))


def dense(network, x, text=None):
    with torch.no_grad():
        return network(x, text)


# Every kind under our own policy, the two that the papers measured under theirs.
CASES = [pytest.param(kind, "incremental", id=f"{kind}, incremental") for kind in KINDS]
CASES += [pytest.param("1.4", name, id=f"1.4, {name}") for name in ("sige", "sige_public")]
CASES += [pytest.param("2.1", name, id=f"2.1, {name}") for name in ("sige", "fisedit", "fisedit_radical")]


def test_full_mask_equals_the_dense_model(network, relative):
    edited = network.latents(2)
    _, after, effect = run(network, policy("incremental"), EVERYTHING, edited)
    assert (relative(after, dense(network, edited)) < 1e-4, effect.fallbacks) == (True, [])


@pytest.mark.parametrize("kind, name", CASES)
def test_nothing_falls_back(kind, name):
    assert small_edit(kind, name)[2].fallbacks == []


@pytest.mark.parametrize("kind, name", CASES)
def test_a_small_edit_costs_less(kind, name):
    effect = small_edit(kind, name)[2]
    assert 0 < effect.macs < 0.7 * effect.dense_macs


@pytest.mark.parametrize("kind, name", CASES)
def test_outside_what_is_active_the_recording_stands_bit_for_bit(kind, name):
    before, after, effect = small_edit(kind, name)
    outside = ~effect.active[:, None].expand_as(before)
    assert torch.equal(after[outside], before[outside])


@pytest.mark.parametrize("kind, name", [case for case in CASES if case.values[1] != "fisedit_radical"])
def test_unchanged_latents_give_the_recording(kind, name, relative):
    """Keys and values of the active positions alone make another function; every other policy recomputes the recorded one."""
    network = Network(kind)
    before, after, _ = run(network, policy(name), SMALL, network.original)
    assert relative(after, before) < 1e-5


def test_an_empty_mask_returns_the_recording_bit_for_bit(network):
    with warnings.catch_warnings(action="ignore"):
        before, after, effect = run(network, policy("incremental"), torch.zeros_like(SMALL), network.original)
    assert (torch.equal(after, before), effect.macs) == (True, 0)


def test_an_edit_follows_the_dense_model(network, relative):
    before, after, effect = small_edit(network.name, "incremental")
    inside = effect.active[:, None].expand_as(before)
    wanted = dense(network, network.edited(SMALL))
    assert relative(after[inside], wanted[inside]) < 0.5 * relative(before[inside], wanted[inside])


def test_changed_text_that_is_not_declared_is_refused():
    network = Network("1.4")
    with pytest.raises(ChangedInputError, match="input 'encoder_hidden_states' differs from the recording"):
        run(network, policy("incremental"), SMALL, network.original, network.other_text)


@pytest.mark.parametrize(
    "kind, name", [("1.4", "incremental"), ("2.1", "incremental"), ("xl", "incremental"), ("1.4", "sige")]
)
def test_changed_text_reaches_the_masked_region_alone(kind, name):
    network = Network(kind)
    before, after, effect = run(
        network, policy(name), SMALL, network.original, network.other_text, changed=("encoder_hidden_states",)
    )
    moved = (after != before).any(1)
    assert (bool(moved.any()), bool((moved & ~effect.active).any()), effect.fallbacks) == (True, False, [])


def test_changed_text_everywhere_equals_the_dense_model(network, relative):
    _, after, _ = run(
        network,
        policy("incremental"),
        EVERYTHING,
        network.original,
        network.other_text,
        changed=("encoder_hidden_states",),
    )
    assert relative(after, dense(network, network.original, network.other_text)) < 1e-4


def test_changed_text_alone_costs_little():
    """With remembered keys and values of the image, new text costs its projections and the masked region."""
    network = Network("1.4")
    _, _, effect = run(
        network, policy("incremental"), SMALL, network.original, network.other_text, changed=("encoder_hidden_states",)
    )
    assert effect.macs < 0.6 * effect.dense_macs


CONDITIONS = [
    pytest.param("in-painting", slice(4, 5), id="the hole's mask"),
    pytest.param("in-painting", slice(5, 9), id="the picture around the hole"),
    pytest.param("pix2pix", slice(4, 8), id="InstructPix2Pix' picture"),
]


def conditioned(network, channels):
    """The original with other values in some channels, inside the small mask; the last branch of three sees none of it."""
    edited = network.original.clone()
    edited[:, channels] = network.edited(SMALL)[:, channels]
    if network.batch == 3:
        edited[2] = network.original[2]
    return edited


@pytest.mark.parametrize("name, channels", CONDITIONS)
def test_a_changed_conditioning_channel_follows_the_dense_model(name, channels, relative):
    """And nothing falls back."""
    network = Network(name)
    edited = conditioned(network, channels)
    before, after, effect = run(network, policy("incremental"), SMALL, edited)
    inside = effect.active[:, None].expand_as(before)
    wanted = dense(network, edited)
    assert relative(after[inside], wanted[inside]) < 0.5 * relative(before[inside], wanted[inside])
    assert effect.fallbacks == []


@pytest.mark.parametrize("kind", ["1.4", "in-painting"])
def test_a_change_outside_the_mask_is_refused(kind):
    network = Network(kind)
    edited = network.edited(SMALL)
    edited[:, -1, 0, 0] += 1
    with pytest.raises(ChangedInputError, match="input 'sample' differs from the recording at . positions outside"):
        run(network, policy("incremental"), SMALL, edited)


@pytest.mark.parametrize("name", ["incremental", "sige", "fisedit_radical"])
def test_counts_on_meta_tensors_are_those_of_the_cpu(name):
    effect = small_edit("2.1", name)[2]
    shapes = Network("2.1")
    shapes.module = unet(**KINDS["2.1"][0]).to("meta")
    shapes.text, shapes.original = shapes.text.to("meta"), shapes.original.to("meta")
    _, _, counted = run(shapes, policy(name), SMALL, shapes.original)
    assert (counted.macs, counted.dense_macs) == (effect.macs, effect.dense_macs)
