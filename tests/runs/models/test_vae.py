"""Stable Diffusion's picture encoder and decoder: what they cost, what goes in, and how trained weights are found."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sige.datasets.scene import scene
from sige.runs.errors import JobFailure
from sige.runs.measure import count_dense
from sige.runs.models import vae
from sige.runs.models.zoo import Zoo

CONF = Path(__file__).parents[3] / "conf" / "model"
PARTS = ("encoder", "decoder")


def configured(part):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"sd_vae_{part}.yaml"))


def small(half, **changes):
    """A small half with the config's other settings."""
    model = configured(half)
    model["config"].update(block_out_channels=[32, 32, 32, 64], layers_per_block=1, norm_num_groups=8)
    return {**model, **changes}


@pytest.fixture(scope="module")
def zoos():
    return {part: Zoo(configured(part), "meta") for part in PARTS}


@pytest.mark.parametrize("part, published", [("encoder", 1151.0), ("decoder", 2548.9)])
def test_dense_macs_are_the_published_ones(zoos, part, published):
    count = count_dense(zoos[part], zoos[part].inputs(scene(512, 1024), 0))
    assert (count.total / 1e9, count.unlisted) == (pytest.approx(published, rel=0.01), [])


@pytest.mark.parametrize("part, millions", [("encoder", 34.16), ("decoder", 49.49)])
def test_parameters_are_the_published_ones(zoos, part, millions):
    assert zoos[part].parameters() / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_allocated_on_meta(zoos, part):
    module = zoos[part].module("contiguous", "float32")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


@pytest.mark.parametrize("part", PARTS)
def test_what_the_dials_name_exists(zoos, part):
    paths = dict(zoos[part].module("contiguous", "float32").named_modules())
    assert set(zoos[part].model["dials"]["sige"]["dense_modules"]) <= set(paths)


@pytest.mark.parametrize("part, shape", [("encoder", (1, 8, 8, 16)), ("decoder", (1, 3, 64, 128))])
def test_a_half_is_the_autoencoders(part, shape):
    from diffusers import AutoencoderKL

    model = small(part)
    torch.manual_seed(model["seed"])
    whole = AutoencoderKL(**model["config"]).eval()
    inputs = vae.inputs(model, scene(64, 128), 0)
    with torch.no_grad():
        output = vae.forward(vae.build(model), *inputs)
        wanted = whole.encode(*inputs).latent_dist.parameters if part == "encoder" else whole.decode(*inputs).sample
    assert output.shape == shape
    torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("part, cell", [("encoder", 1), ("decoder", 8)])
def test_inputs_differ_where_a_covered_pixel_does(part, cell):
    original = scene(64, 64)
    edited = original.clone()
    edited[:, 17:25, 40:42] = 1
    before, after = (vae.inputs(small(part), picture, 0)[0] for picture in (original, edited))
    changed = torch.zeros(64, 64, dtype=torch.bool)
    changed[17:25, 40:42] = True
    wanted = torch.nn.functional.max_pool2d(changed[None].float(), cell) > 0
    assert torch.equal((before != after).any(1), wanted)


@pytest.mark.parametrize("layout", ["vae", "."], ids=["pipeline", "alone"])
@pytest.mark.parametrize("part", PARTS)
def test_trained_weights_come_from_a_folder(tmp_path, part, layout):
    from diffusers import AutoencoderKL

    torch.manual_seed(11)
    whole = AutoencoderKL(**small(part)["config"])
    whole.save_pretrained(tmp_path / layout)
    module = vae.build(small(part, weights="pretrained", weights_path=str(tmp_path)))
    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("part", PARTS)
def test_missing_weights_are_told(part):
    with pytest.raises(JobFailure) as told:
        vae.weights_digest(small(part, weights="pretrained", weights_path="/nowhere"))
    assert (told.value.status, "/nowhere" in str(told.value), "vae" in str(told.value)) == (
        "missing_weights",
        True,
        True,
    )


def test_random_weights_are_named_by_their_seed():
    assert vae.weights_digest(small("encoder", seed=4)) == "random:4"


def test_another_part_is_refused():
    with pytest.raises(JobFailure, match="^sd_vae_encoder has part='middle'; choose encoder or decoder"):
        vae.build(small("encoder", part="middle"))
