"""Stable Diffusion's U-Nets: what they cost, what goes in, and how trained weights are found."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sige.datasets.scene import scene
from sige.runs.errors import JobFailure
from sige.runs.measure import count_dense
from sige.runs.models import latents, stable_diffusion
from sige.runs.models.zoo import Zoo

CONF = Path(__file__).parents[3] / "conf" / "model"


def configured(name):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))


# GMACs of one step: printed by the papers, or counted by their reference code.
PUBLISHED = [
    ("sd14_unet", 1848.5),
    ("sd21_unet", 2149),
    ("sd21_unet_512", 804),
    ("sd_inpaint_unet", 2149),
    ("instruct_pix2pix_unet", 3223),
    ("sd_lcm_unet", 401.6),
    ("sd_tcd_unet", 401.6),
    ("sdxl_unet", 6761.2),
]


@pytest.fixture(scope="module")
def zoos():
    made = {}

    def zoo(name):
        if name not in made:
            made[name] = Zoo(configured(name), "meta")
        return made[name]

    return zoo


@pytest.mark.parametrize("name, published", PUBLISHED)
def test_dense_macs_are_the_published_ones(zoos, name, published):
    zoo = zoos(name)
    size = (zoo.model["input"]["height"], zoo.model["input"]["width"])
    count = count_dense(zoo, zoo.inputs(scene(*size), 0))
    assert (count.total / 1e9, count.unlisted) == (pytest.approx(published, rel=0.01), [])


@pytest.mark.parametrize("name, millions", [("sd14_unet", 859.52), ("sd21_unet", 865.91), ("sdxl_unet", 2567.46)])
def test_parameters_are_the_published_ones(zoos, name, millions):
    assert zoos(name).parameters() / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", [name for name, _ in PUBLISHED])
def test_nothing_is_allocated_on_meta(zoos, name):
    module = zoos(name).module("channels_last", "float32")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


@pytest.mark.parametrize("name", [name for name, _ in PUBLISHED])
@pytest.mark.parametrize("policy", ["sige", "sige_public", "fisedit"])
def test_dials_are_those_of_a_policy(name, policy):
    from sige.runs.methods import session

    session.check({"policy": policy, "layout": "contiguous"}, configured(name))


@pytest.mark.parametrize(
    "name, levels",
    [pytest.param("sd21_unet", (24,), id="768: level 24"), pytest.param("sd21_unet_512", (32,), id="512: level 32")],
)
def test_fisedits_dense_attention_is_that_of_its_level(zoos, name, levels):
    """The patterns of the dials name every attention of maps below 48 positions a side, and none above."""
    import fnmatch

    zoo = zoos(name)
    patterns = zoo.model["dials"]["fisedit"]["dense_modules"]
    side = zoo.model["input"]["height"] // 8
    named = set()
    for path, module in zoo.module("contiguous", "float32").named_modules():
        if path.endswith((".attn1", ".attn2")) and not path.startswith("mid_block"):
            block, number = path.split(".")[:2]
            level = side >> (int(number) if block == "down_blocks" else 3 - int(number))
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                named.add(level)
            else:
                assert level >= 48 or level < 24
    assert tuple(named) == levels


SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}


def small(name="sd14_unet", **changes):
    """The named model at 64x64 with a small network: every input of it, none of its size."""
    model = configured(name)
    model["config"].update(SMALL)
    for key in ("mid_block_scale_factor", "transformer_layers_per_block"):
        model["config"].pop(key, None)
    model["input"].update(height=64, width=64)
    return {**model, **changes}


@pytest.mark.parametrize("name", [name for name, _ in PUBLISHED])
def test_every_kind_takes_a_step(name):
    model = small(name)
    inputs = stable_diffusion.inputs(model, scene(64, 64), 0)
    with torch.no_grad():
        output = stable_diffusion.forward(stable_diffusion.build(model), *inputs)
    assert (output.shape, bool(output.isfinite().all())) == ((len(model["branches"]), 4, 8, 8), True)


def test_the_same_seed_gives_the_same_weights():
    first, second = (stable_diffusion.build(small()).conv_in.weight for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32 and not first.requires_grad


def test_weights_are_named_by_their_seed():
    assert stable_diffusion.weights_digest(small(seed=3)) == "random:3"


# -- inputs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """Two pictures of 64x64 that differ in a box of pixels, rows 17 to 24 and columns 40 to 41."""
    original = scene(64, 64)
    edited = original.clone()
    edited[:, 17:25, 40:42] = 1
    return original, edited


def touched():
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[2:4, 5] = True
    return cells


@pytest.mark.parametrize("name", [name for name, _ in PUBLISHED])
def test_inputs_differ_where_a_covered_pixel_does(pair, name):
    before, after = (stable_diffusion.inputs(small(name), picture, 5)[0] for picture in pair)
    assert torch.equal((before != after).any(1).any(0), touched())


@pytest.mark.parametrize("name", [name for name, _ in PUBLISHED])
def test_everything_beside_the_latents_is_the_same(pair, name):
    before, after = (stable_diffusion.inputs(small(name), picture, 5)[1:] for picture in pair)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_another_seed_gives_other_noise_and_text(pair):
    first, second = (stable_diffusion.inputs(small(), pair[0], seed) for seed in (0, 1))
    assert [torch.equal(one, other) for one, other in zip(first, second)] == [False, True, False]


def test_the_branches_of_guidance_share_latents_and_not_text(pair):
    sample, step, text = stable_diffusion.inputs(small(), pair[0], 0)
    assert (step.tolist(), torch.equal(sample[0], sample[1]), torch.equal(text[0], text[1])) == ([501], True, False)


@pytest.mark.parametrize("name", ["sd14_unet", "instruct_pix2pix_unet", "sdxl_unet"])
def test_new_text_reaches_the_branches_that_have_text(pair, name):
    model = small(name)
    before = stable_diffusion.inputs(model, pair[0], 0)
    after, names = stable_diffusion.with_new_text(model, before, 0)
    changed = [not torch.equal(one, other) for one, other in zip(before[2], after[2], strict=True)]
    assert changed == ["text" in branch for branch in model["branches"]]
    assert names == ("encoder_hidden_states",)
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)].count(False) == 1


def test_noise_is_that_of_diffusers_own_schedule(pair):
    from diffusers import DDIMScheduler

    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean = latents.stand_in(pair[0])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    wanted = schedule.add_noise(clean, noise, torch.tensor([501]))
    torch.testing.assert_close(stable_diffusion.inputs(small(), pair[0], 7)[0][:1], wanted)


@pytest.mark.parametrize("name, scheduler", [("sd_lcm_unet", "LCMScheduler"), ("sd_tcd_unet", "TCDScheduler")])
def test_a_few_step_models_step_is_one_of_its_schedule(name, scheduler):
    import diffusers

    schedule = getattr(diffusers, scheduler)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule.set_timesteps(4)
    assert schedule.timesteps.tolist() == [999, 759, 499, 259] and configured(name)["timestep"] == 499


def test_the_guidance_of_a_distilled_model_is_embedded_as_diffusers_does(pair):
    from diffusers.models.embeddings import get_timestep_embedding

    told = stable_diffusion.inputs(small("sd_lcm_unet"), pair[0], 0)[3]
    wanted = get_timestep_embedding(torch.tensor([7500.0]), 256, flip_sin_to_cos=False, downscale_freq_shift=1)
    torch.testing.assert_close(told, wanted, atol=2e-3, rtol=0)  # sines of angles up to 7500 in float32


def test_in_painting_takes_the_hole_and_the_picture_without_it(pair):
    sample = stable_diffusion.inputs(small("sd_inpaint_unet"), pair[0], 0)[0]
    hole = torch.zeros(8, 8)
    hole[2:6, 2:6] = 1
    assert torch.equal(sample[0, 4], hole)
    assert not sample[0, 5:, 2:6, 2:6].any()
    torch.testing.assert_close(sample[0, 5:, 0], latents.stand_in(pair[0])[0, :, 0])


def test_instruct_pix2pix_hides_its_picture_from_the_last_branch(pair):
    sample, _, text = stable_diffusion.inputs(small("instruct_pix2pix_unet"), pair[0], 0)
    assert torch.equal(sample[0], sample[1]) and torch.equal(sample[:1, 4:], latents.stand_in(pair[0]))
    assert not sample[2, 4:].any() and torch.equal(sample[2, :4], sample[0, :4])
    assert torch.equal(text[1], text[2]) and not torch.equal(text[0], text[1])


def test_xl_is_told_the_pictures_size(pair):
    _, _, _, pooled, sizes = stable_diffusion.inputs(small("sdxl_unet"), pair[0], 0)
    assert (pooled.shape, sizes.tolist()) == ((2, 1280), [[64, 64, 0, 0, 64, 64]] * 2)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        pytest.param(
            {"branches": ["both"]}, "sd14_unet has an unknown branch 'both'; choose of plain, text", id="branch"
        ),
        pytest.param(
            {"conditioning": "depth"}, "sd14_unet has unknown conditioning 'depth'; choose", id="conditioning"
        ),
        pytest.param(
            {"conditioning": "hole"}, "sd14_unet has in_channels=4, with conditioning=hole it must", id="channels"
        ),
        pytest.param({"text": {"tokens": 77, "width": 1024}}, "sd14_unet has text.width=1024, its config's", id="text"),
    ],
)
def test_inputs_that_the_network_cannot_take_are_refused(changes, sentence):
    with pytest.raises(JobFailure) as told:
        stable_diffusion.build(small(**changes))
    assert (told.value.status, str(told.value).startswith(sentence)) == ("invalid", True)


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_outside_the_schedule_is_refused(pair, step):
    with pytest.raises(JobFailure, match=rf"^timestep={step} is not one of the schedule's 0 to 999"):
        stable_diffusion.inputs(small(timestep=step), pair[0], 0)


def test_a_picture_without_latents_is_refused():
    with pytest.raises(JobFailure, match="^a picture of 60x64 has no latents: its sides must be multiples of 8"):
        latents.stand_in(torch.zeros(3, 60, 64))


# -- trained weights -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A network whose weights are not those of the config's seed."""
    return stable_diffusion.build(small(seed=11))


def saved(trained, folder, layout, safe=True):
    """``trained`` as diffusers saves it: the folder of a pipeline, or that of the network alone."""
    trained.save_pretrained(folder / "unet" if layout == "pipeline" else folder, safe_serialization=safe)
    return folder


def in_hub_cache(trained, cache, repository):
    """``trained`` as a snapshot in a hub cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    saved(trained, folder / "snapshots" / revision, "pipeline")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def pretrained(**changes):
    return small(**{"weights": "pretrained", **changes})


def same(module, trained):
    return all(torch.equal(one, other) for one, other in zip(module.parameters(), trained.parameters(), strict=True))


@pytest.mark.parametrize("safe", [pytest.param(True, id="safetensors"), pytest.param(False, id="bin")])
@pytest.mark.parametrize("layout", ["pipeline", "alone"])
def test_trained_weights_come_from_a_folder(trained, tmp_path, layout, safe):
    folder = saved(trained, tmp_path, layout, safe)
    assert same(stable_diffusion.build(pretrained(weights_path=str(folder))), trained)


def test_trained_weights_come_from_the_hubs_cache(trained, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    in_hub_cache(trained, tmp_path, "CompVis/stable-diffusion-v1-4")
    assert same(stable_diffusion.build(pretrained()), trained)


def test_the_digest_is_that_of_the_file(trained, tmp_path):
    model = pretrained(weights_path=str(saved(trained, tmp_path, "pipeline")))
    before = stable_diffusion.weights_digest(model)
    stable_diffusion.build(small(seed=12)).save_pretrained(tmp_path / "unet")
    assert (len(before), before != stable_diffusion.weights_digest(model)) == (12, True)


def test_another_network_in_the_folder_is_refused(trained, tmp_path):
    folder = saved(trained, tmp_path, "alone")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_linear_projection": True}))
    with pytest.raises(JobFailure, match="has use_linear_projection=True where model.config has False; give") as told:
        stable_diffusion.build(pretrained(weights_path=str(folder)))
    assert told.value.status == "invalid"


@pytest.mark.parametrize("left_out", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_folder_that_is_not_whole_says_what_it_lacks(trained, tmp_path, left_out):
    folder = saved(trained, tmp_path, "pipeline")
    (folder / "unet" / left_out).unlink()
    with pytest.raises(JobFailure, match=rf"^sd14_unet: no {left_out} in .*unet; give a diffusers folder") as told:
        stable_diffusion.weights_digest(pretrained(weights_path=str(folder)))
    assert told.value.status == "missing_weights"


MISSING = [
    pytest.param({"weights_path": "/nowhere"}, "/nowhere", id="folder"),
    pytest.param({}, "CompVis/stable-diffusion-v1-4", id="repository"),
    pytest.param({"repository": None}, "weights_path", id="neither"),
]


@pytest.mark.parametrize("changes, named", MISSING)
def test_missing_weights_are_told_at_once(changes, named, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(JobFailure) as told:
        stable_diffusion.weights_digest(pretrained(**changes))
    assert (told.value.status, named in str(told.value), "unet" in str(told.value)) == ("missing_weights", True, True)


def test_unknown_weights_are_refused():
    with pytest.raises(JobFailure, match="^sd14_unet has no weights 'scenes'; there are random, pretrained"):
        stable_diffusion.weights_digest(small(weights="scenes"))
