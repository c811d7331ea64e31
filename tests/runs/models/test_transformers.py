"""Image transformers as models to measure: what their files say, what goes into them, where trained weights come from."""

import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

import sige
from sige.macs import MacCounter
from sige.runs.errors import JobFailure
from sige.runs.models import transformers

# GMACs of one step, dense: convolutions, linear layers and attention products.
DENSE = {"pixart_alpha": 1236.0, "sd3_medium": 8904.3, "flux_dev": 37192, "flux_small": 557.8, "sana": 1121.5}
SMALL = {
    "pixart_alpha": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24,
    },
    "sd3_medium": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 24,
        "caption_projection_dim": 32, "pooled_projection_dim": 12,
    },
    "flux_dev": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 24,
        "pooled_projection_dim": 12, "axes_dims_rope": [4, 6, 6],
    },
    "sana": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8,
    },
}  # fmt: skip


def configured(name):
    """The resolved config of conf/model/<name>.yaml."""
    return OmegaConf.to_container(OmegaConf.load(sige.paths.conf_dir() / "model" / f"{name}.yaml"))


def small(name):
    """The same, of one block or two and few channels."""
    model = configured(name)
    model["config"].update(SMALL[name])
    model["text"].update(tokens=6, width=24, pooled=12 if model["text"]["pooled"] else 0)
    return model


def picture(side=256, seed=0):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def without_data(model):
    with torch.device("meta"):
        return transformers.build(model)


@pytest.mark.parametrize("name", DENSE)
def test_dense_macs_of_a_step(name):
    model = configured(name)
    module = without_data(model)
    arguments = transformers.inputs(model, torch.zeros(3, model["input"]["height"], model["input"]["width"]), 0)
    with torch.no_grad(), MacCounter() as counter:
        transformers.forward(module, *(part.to("meta") for part in arguments))
    assert (counter.count.total / 1e9, counter.count.unlisted) == (pytest.approx(DENSE[name], rel=1e-4), [])


@pytest.mark.parametrize("name", DENSE)
def test_without_data_no_weight_is_made(name):
    assert {tensor.device.type for tensor in without_data(configured(name)).parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["flux_dev", "flux_small"])
def test_token_grid_is_that_of_the_picture(name):
    model = configured(name)
    assert [16 * side for side in model["token_grid"]] == [model["input"]["height"], model["input"]["width"]]


@pytest.mark.parametrize(
    "name, shapes",
    [
        pytest.param("pixart_alpha", [(2, 4, 32, 32), (2, 6, 24), (2, 6), (2,)], id="pixart"),
        pytest.param("sd3_medium", [(2, 16, 32, 32), (2, 6, 24), (2, 12), (2,)], id="sd3"),
        pytest.param("flux_dev", [(1, 16, 32, 32), (1, 6, 24), (1, 12), (1,), (1,)], id="flux"),
        pytest.param("sana", [(2, 32, 8, 8), (2, 6, 24), (2, 6), (2,)], id="sana"),
    ],
)
def test_inputs(name, shapes):
    assert [tuple(part.shape) for part in transformers.inputs(small(name), picture(), 0)] == shapes


@pytest.mark.parametrize("name", SMALL)
def test_inputs_differ_where_the_picture_does_and_nowhere_else(name):
    model, edited, pixels = small(name), picture(), torch.zeros(256, 256)
    edited[:, 40:64, 80:120] = picture(seed=1)[:, 40:64, 80:120]
    pixels[40:64, 80:120] = 1
    mask = F.max_pool2d(pixels[None], model["latent"].get("reduction", 8))[0] > 0
    before, after = (transformers.inputs(model, one, 0) for one in (picture(), edited))
    assert all(torch.equal(changed, mask) for changed in (before[0] != after[0]).any(1))


@pytest.mark.parametrize("name", SMALL)
def test_text_and_time_are_the_same_for_both_pictures(name):
    before, after = (transformers.inputs(small(name), picture(seed=seed), 0)[1:] for seed in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize("name", SMALL)
def test_seeds_give_other_noise(name):
    one, other = (transformers.inputs(small(name), picture(), seed)[0] for seed in (0, 1))
    assert (one != other).all()


@pytest.mark.parametrize("name, kept", [("pixart_alpha", 0.0786**0.5), ("sd3_medium", 0.5), ("flux_dev", 0.5)])
def test_share_of_the_picture_half_way(name, kept):
    """With the same noise, two inputs differ by what is left of the pictures' difference."""
    from sige.runs.models.latents import stand_in

    model = small(name)
    one, other = (transformers.inputs(model, picture(seed=seed), 0)[0][:1] for seed in (0, 1))
    clean = [stand_in(picture(seed=seed), one.shape[1]) for seed in (0, 1)]
    assert ((one - other).norm() / (clean[0] - clean[1]).norm()).item() == pytest.approx(kept, rel=1e-2)


@pytest.mark.parametrize(
    "name, channels, side", [("pixart_alpha", 8, 32), ("sd3_medium", 16, 32), ("flux_dev", 16, 32), ("sana", 32, 8)]
)
def test_output_is_a_map_of_the_latents_size(name, channels, side):
    model = small(name)
    with torch.no_grad():
        found = transformers.forward(transformers.build(model), *transformers.inputs(model, picture(), 0))
    assert (found.shape[1:], bool(found.isfinite().all())) == ((channels, side, side), True)


def test_pixart_of_1024_is_told_the_pictures_size():
    model = small("pixart_alpha")
    model["config"].update(sample_size=128, use_additional_conditions=True, num_attention_heads=3)
    model["config"].update(cross_attention_dim=48)
    with torch.no_grad():
        found = transformers.forward(transformers.build(model), *transformers.inputs(model, picture(), 0))
    assert found.shape == (2, 8, 32, 32)


class FluxTransformer2DModel(nn.Module):
    """Gives back the tokens that it was called with, and keeps the rest."""

    def forward(self, tokens, **rest):
        self.tokens, self.rest = tokens, rest
        return type("Output", (), {"sample": tokens})()


@pytest.fixture
def packed():
    """The stand-in for Flux after a forward on (1, 16, 8, 12), and that input and output."""
    module, sample = FluxTransformer2DModel(), torch.randn(1, 16, 8, 12)
    text, pooled, times = torch.randn(1, 5, 24), torch.randn(1, 12), torch.tensor([500.0])
    return module, sample, transformers.forward(module, sample, text, pooled, times, torch.tensor([3.5]))


def test_flux_tokens_are_unpacked_as_they_were_packed(packed):
    _, sample, found = packed
    assert torch.equal(found, sample)


@pytest.mark.parametrize("token", [0, 7, 23])
def test_flux_token_holds_its_patch(packed, token):
    module, sample, _ = packed
    row, column = 2 * (token // 6), 2 * (token % 6)
    assert torch.equal(module.tokens[0, token].view(16, 2, 2), sample[0, :, row : row + 2, column : column + 2])


@pytest.mark.parametrize("token", [0, 7, 23])
def test_flux_token_knows_its_place(packed, token):
    assert packed[0].rest["img_ids"][token].tolist() == [0, token // 6, token % 6]


def test_flux_time_is_a_share(packed):
    assert packed[0].rest["timestep"].tolist() == [0.5]


def edit_of(name, device, **dials):
    """Effect of an edit of 5 % of a picture of 512x512 under the file's own dials, and what the session remembers."""
    model = small(name)
    module = without_data(model) if device == "meta" else transformers.build(model)
    mask = torch.zeros(512, 512, dtype=torch.bool)
    mask[100:220, 200:310] = True
    edited = torch.where(mask, picture(512, seed=1), picture(512))
    policy = dataclasses.replace(sige.policy("incremental"), **model["dials"]["incremental"], **dials)
    session = sige.Session(module, policy, token_grid=(32, 32) if name == "flux_dev" else None)
    original, edited = (
        [part.to(device) for part in transformers.inputs(model, one, 0)] for one in (picture(512), edited)
    )
    with session.record():
        transformers.forward(module, *original)
    with session.edit(mask) as effect:
        transformers.forward(module, *edited)
    return effect, session.state_bytes()


@pytest.mark.parametrize("name", SMALL)
def test_an_edit_in_the_pictures_resolution(name):
    effect, _ = edit_of(name, "cpu")
    assert (effect.fallbacks, effect.macs < 0.25 * effect.dense_macs) == ([], True)


@pytest.mark.parametrize("text_refresh", [1, None])
@pytest.mark.parametrize("name", SMALL)
def test_counts_without_data_are_the_same(name, text_refresh):
    there, here = (edit_of(name, device, text_refresh=text_refresh) for device in ("meta", "cpu"))
    assert (there[0].macs, there[0].dense_macs, there[1]["kv"]) == (here[0].macs, here[0].dense_macs, here[1]["kv"])


@pytest.mark.parametrize("sides", [(256, 248), (40, 256)])
def test_picture_that_does_not_fit_the_tokens(sides):
    with pytest.raises(
        JobFailure, match=f"cuts a picture into tokens of 16x16 pixels: {sides[0]}x{sides[1]} does not fit"
    ):
        transformers.inputs(small("flux_dev"), torch.zeros(3, *sides), 0)


def test_unknown_architecture():
    with pytest.raises(JobFailure, match="unknown architecture 'DiT' of flux_dev; choose PixArtTransformer2DModel"):
        transformers.build({**small("flux_dev"), "architecture": "DiT"})


def test_digest_of_random_weights_is_their_seed():
    assert transformers.weights_digest({**small("flux_dev"), "seed": 7}) == "random:7"


def test_unknown_weights():
    with pytest.raises(JobFailure, match="flux_dev has no weights 'best'; there are random, pretrained"):
        transformers.weights_digest({**small("flux_dev"), "weights": "best"})


def test_seed_makes_the_weights():
    one, other = (transformers.build(small("flux_dev")).proj_out.weight for _ in range(2))
    assert torch.equal(one, other)


@pytest.fixture
def saved(tmp_path):
    """A small Flux saved as diffusers does, in a pipeline's folder, and the config that asks for it."""
    model = {**small("flux_dev"), "seed": 3}
    module = transformers.build(model)
    module.save_pretrained(tmp_path / "transformer")
    return module, {**model, "weights": "pretrained", "weights_path": str(tmp_path), "seed": 0}


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_trained_weights_are_loaded(saved, inner):
    module, model = saved
    loaded = transformers.build({**model, "weights_path": f"{model['weights_path']}/{inner}"})
    assert all(
        torch.equal(one, other) for one, other in zip(module.state_dict().values(), loaded.state_dict().values())
    )


def test_trained_weights_in_pieces_are_loaded(saved):
    module, model = saved
    folder = f"{model['weights_path']}/transformer"
    for file in transformers.Path(folder).glob("*.safetensors"):
        file.unlink()
    module.save_pretrained(folder, max_shard_size="50KB")
    loaded = transformers.build(model)
    assert torch.equal(loaded.proj_out.weight, module.proj_out.weight)


def test_digest_of_trained_weights_follows_the_file(saved):
    module, model = saved
    before = transformers.weights_digest(model)
    nn.init.ones_(module.proj_out.weight)
    module.save_pretrained(f"{model['weights_path']}/transformer")
    assert (before != transformers.weights_digest(model), before.startswith("random")) == (True, False)


def test_trained_weights_of_another_network_are_refused(saved):
    model = {**saved[1], "config": {**saved[1]["config"], "num_layers": 5}}
    with pytest.raises(JobFailure, match="num_layers=1 where model.config has 5"):
        transformers.build(model)


@pytest.mark.parametrize("name", DENSE)
def test_missing_weights_are_a_status_at_once(name):
    model = {**configured(name), "weights": "pretrained"}
    if "repository" in model:
        model["repository"] = "nobody/has-such-weights"
    start = time.perf_counter()
    with pytest.raises(JobFailure) as failure:
        transformers.weights_digest(model)
    assert (failure.value.status, name in str(failure.value), time.perf_counter() - start < 5) == (
        "missing_weights",
        True,
        True,
    )


def test_folder_without_weights_says_what_it_must_hold(tmp_path):
    model = {**small("flux_dev"), "weights": "pretrained", "weights_path": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JobFailure, match="must hold config.json and diffusion_pytorch_model") as failure:
        transformers.build(model)
    assert failure.value.status == "missing_weights"
