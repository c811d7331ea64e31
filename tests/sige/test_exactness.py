"""What an edit must equal: the recording outside, the dense model under a full mask, itself in a batch."""

import copy

import pytest
import torch

import sige

POLICIES = ["incremental", "sige", "sige_public", "pixel", "dense"]


def record(model, policy, x, t=500):
    session = sige.Session(model, policy)
    with session.record():
        output = model(x, t).sample
    return session, output


def dense(model, x, t=500):
    with torch.no_grad():
        return model(x, t).sample


@pytest.mark.parametrize("name", POLICIES)
def test_recording_equals_the_dense_model(unet, small, images, relative, name):
    _, output = record(unet, small(name), images[0])
    assert relative(output, dense(unet, images[0])) < 1e-5


@pytest.mark.parametrize("name", POLICIES)
def test_outside_active_is_the_recording_bit_for_bit(unet, small, images, run, name):
    original, edited, mask = images
    session, before = record(unet, small(name), original)
    with session.edit(mask) as effect:
        after = run(session, edited)
    outside = ~effect.active[:, None].expand_as(before)
    assert torch.equal(after[outside], before[outside])


@pytest.mark.parametrize("name", POLICIES)
def test_edit_changes_the_masked_region(unet, small, images, run, name):
    original, edited, mask = images
    session, before = record(unet, small(name), original)
    with session.edit(mask):
        after = run(session, edited)
    assert (after - before)[..., mask].abs().mean() > 0.1


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_changed_returns_the_recording(unet, small, images, run, name):
    original, _, mask = images
    session, before = record(unet, small(name), original)
    with session.edit(mask):
        after = run(session, original)
    assert (after - before).abs().max() < 1e-5


def text_unet(levels):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32,) * levels, layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", *["DownBlock2D"] * (levels - 1)),
        up_block_types=(*["UpBlock2D"] * (levels - 1), "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("levels, size", [(2, (90, 60)), (3, (50, 66))], ids=["90x60", "50x66"])
def test_sides_that_no_tile_divides(small, relative, levels, size, name):
    """Latents of a 720x480 picture, and of another whose levels are odd, so that some do not double on the way up."""
    generator = torch.Generator().manual_seed(4)
    original, other = (torch.randn(1, 4, *size, generator=generator) for _ in range(2))
    text, mask = torch.randn(1, 7, 16, generator=generator), torch.zeros(size, dtype=torch.bool)
    mask[9:15, 20:31] = True
    unet = text_unet(levels)
    session = sige.Session(unet, small(name))
    with session.record():
        before = unet(original, 500, text).sample
    with session.edit(mask) as effect:
        after = unet(torch.where(mask, other, original), 500, text).sample
    outside = ~effect.active[:, None].expand_as(before)
    with session.edit(torch.ones(size, dtype=torch.bool)):
        full = unet(other, 500, text).sample
    with torch.no_grad():
        error = relative(full, unet(other, 500, text).sample)
    assert (torch.equal(after[outside], before[outside]), small(name).norm == "cached" or error < 1e-4) == (True, True)


@pytest.mark.parametrize("norm", ["incremental", "dense"])
@pytest.mark.parametrize("block", [1, 4, 32])
@pytest.mark.parametrize("geometry", ["level", "window"])
def test_full_mask_equals_dense(unet, small, images, run, relative, geometry, block, norm):
    original, _, mask = images
    name = "incremental" if geometry == "level" else "sige"
    policy = small(name, norm=norm, block=block, dense_above=None, dilation=0)
    session, _ = record(unet, policy, original)
    edited = original * 1.5 + 0.3
    with session.edit(torch.ones_like(mask)) as effect:
        after = run(session, edited)
    assert (relative(after, dense(unet, edited)) < 1e-4, effect.fallbacks) == (True, [])


def test_full_mask_above_the_dense_share_runs_the_plain_model(unet, small, images, run):
    original, _, mask = images
    session, _ = record(unet, small("incremental"), original)
    edited = original + 1
    with session.edit(torch.ones_like(mask)) as effect:
        after = run(session, edited)
    assert (torch.equal(after, dense(unet, edited)), effect.macs) == (True, effect.dense_macs)


@pytest.mark.parametrize("share", [0.3, 0.6], ids=["low levels dense", "most levels dense"])
def test_levels_that_run_dense_agree_with_those_that_do_not(unet, small, images, run, relative, share):
    original, edited, mask = images
    outputs = []
    for dense_above in (None, share):
        session, _ = record(unet, small("incremental", dense_above=dense_above, dilation=0, block=4), original)
        with session.edit(mask):
            outputs.append(run(session, edited)[..., mask])
    assert relative(*outputs) < 0.2


@pytest.mark.parametrize("name", ["incremental", "sige"])
def test_batch_of_two_edits_equals_the_two_alone(unet, small, images, run, name):
    original, edited, first = images
    second = torch.zeros_like(first)
    second[4:12, 40:60] = True
    other = torch.where(second, original.flip(3), original)
    session, _ = record(unet, small(name), torch.cat([original, original]))
    with session.edit(torch.stack([first, second])):
        together = run(session, torch.cat([edited, other]))
    alone = []
    for image, mask in ((edited, first), (other, second)):
        session, _ = record(unet, small(name), original)
        with session.edit(mask):
            alone.append(run(session, image))
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["incremental", "sige"])
def test_bfloat16_error_is_that_of_the_dense_model(unet, small, images, run, relative, name):
    original, _, mask = images
    edited, everywhere = original + 0.5, torch.ones_like(mask)
    exact = dense(unet, edited)
    half = copy.deepcopy(unet).bfloat16()
    session, _ = record(half, small(name, norm="incremental", dense_above=None), original.bfloat16())
    with session.edit(everywhere):
        sparse = run(session, edited.bfloat16())
    assert relative(sparse, exact) <= 1.2 * relative(dense(half, edited.bfloat16()), exact)


def brightened(unet, small, images, run, relative, norm):
    original = images[0]
    mask = torch.zeros(original.shape[2:], dtype=torch.bool)
    mask[10:45, 10:45] = True  # 30 %
    edited = torch.where(mask, original + 2, original)
    session, _ = record(unet, small("incremental", norm=norm, dense_above=None, dilation=1, block=4), original)
    with session.edit(mask):
        after = run(session, edited)
    return relative(after[..., mask], dense(unet, edited)[..., mask])


def test_incremental_statistics_cut_the_error_of_a_brightening_edit(unet, small, images, run, relative):
    exact, cached = (brightened(unet, small, images, run, relative, norm) for norm in ("incremental", "cached"))
    assert exact < cached / 2


@pytest.mark.parametrize(
    "inference", [(False, True), (True, False), (True, True)], ids=["edit in", "record in", "both in"]
)
def test_inside_and_outside_inference_mode(unet, small, images, run, inference):
    original, edited, mask = images
    session = sige.Session(unet, small("incremental"))
    with torch.inference_mode(inference[0]), session.record():
        run(session, original)
    with torch.inference_mode(inference[1]), session.edit(mask):
        after = run(session, edited)
    plain, _ = record(unet, small("incremental"), original)
    with plain.edit(mask):
        assert torch.equal(after, run(plain, edited))


def test_autocast_follows_the_dense_model_under_autocast(unet, small, images, run, relative):
    original, _, mask = images
    edited = original + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        session, _ = record(unet, small("incremental", dense_above=None), original)
        with session.edit(torch.ones_like(mask)):
            sparse = run(session, edited)
        half = dense(unet, edited)
    exact = dense(unet, edited)
    assert relative(sparse.float(), exact) <= 1.5 * relative(half.float(), exact)
