"""The church U-Net's trained weights: a diffusers folder, and state dicts in the names of DDPM's code."""

import pytest
import torch

from sige.runs.errors import JobFailure
from sige.runs.models import unet2d

# The parts of DDPM's U-Net of two levels and one block a level, and what diffusers calls them; fetched names, written out.
PARTS = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "down.0.downsample.conv": "down_blocks.0.downsamplers.0.conv",
    "up.1.upsample.conv": "up_blocks.0.upsamplers.0.conv",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
BLOCKS = {
    "down.0.block.0": "down_blocks.0.resnets.0",
    "down.1.block.0": "down_blocks.1.resnets.0",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "up.1.block.0": "up_blocks.0.resnets.0",
    "up.1.block.1": "up_blocks.0.resnets.1",
    "up.0.block.0": "up_blocks.1.resnets.0",
    "up.0.block.1": "up_blocks.1.resnets.1",
}
ATTENTIONS = {
    "down.1.attn.0": "down_blocks.1.attentions.0",
    "mid.attn_1": "mid_block.attentions.0",
    "up.1.attn.0": "up_blocks.0.attentions.0",
    "up.1.attn.1": "up_blocks.0.attentions.1",
}
IN_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# The order in which the fused state dict has the projections of the time step.
RUN = list(BLOCKS)


def tiny(**changes):
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
    }
    return {"name": "tiny", "weights": "random", "weights_path": None, "seed": 0, "config": config, **changes}


def pretrained(path):
    return tiny(weights="pretrained", weights_path=str(path), seed=5)


@pytest.fixture(scope="module")
def trained():
    """A network whose weights are not those of the loader's seed."""
    return unet2d.build(tiny(seed=1))


def ddpm(network):
    """Its weights as DDPM's code names them."""
    there = network.state_dict()
    pairs = dict(PARTS)
    for names, inner in ((BLOCKS, IN_BLOCK), (ATTENTIONS, IN_ATTENTION)):
        pairs |= {f"{name}.{part}": f"{other}.{inner[part]}" for name, other in names.items() for part in inner}
    state = {}
    for name, other in pairs.items():
        for last in ("weight", "bias"):
            if f"{other}.{last}" in there:
                value = there[f"{other}.{last}"]
                linear = "attn" in name and value.dim() == 2
                state[f"{name}.{last}"] = value[:, :, None, None] if linear else value
    assert len(state) == len(there)
    return state


def fused(network):
    """The same as SIGE's fused network has it."""
    state = ddpm(network)
    for last in ("weight", "bias"):
        state[f"temb.dense.2.{last}"] = torch.cat([state.pop(f"{name}.temb_proj.{last}") for name in RUN])
        for name in ATTENTIONS:
            state[f"{name}.qkv.{last}"] = torch.cat([state.pop(f"{name}.{part}.{last}") for part in "qkv"])
    return state


@torch.no_grad()
def run(network):
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return unet2d.forward(network, picture, torch.tensor([321]))


LAYOUTS = [
    pytest.param(ddpm, id="DDPM"),
    pytest.param(fused, id="fused"),
    pytest.param(lambda network: {f"module.{key}": value for key, value in ddpm(network).items()}, id="parallel"),
    pytest.param(lambda network: {"model": ddpm(network)}, id="SIGE's wrapping"),
    pytest.param(lambda network: [{"a": torch.ones(1)}, {}, 7, ddpm(network)], id="DDPM's list"),
    pytest.param(lambda network: network.state_dict(), id="diffusers"),
]


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt"])
@pytest.mark.parametrize("written", LAYOUTS)
def test_a_state_dict_loads(trained, tmp_path, written, suffix):
    torch.save(written(trained), tmp_path / f"weights{suffix}")
    torch.testing.assert_close(run(unet2d.build(pretrained(tmp_path / f"weights{suffix}"))), run(trained))


def test_the_seeds_own_weights_are_others(trained):
    assert not torch.allclose(run(unet2d.build(tiny(seed=5))), run(trained), rtol=0.1)


@pytest.mark.parametrize("name", ["church256-ddim-unet.pth", "church256-ddim-fused_unet.pth"])
def test_a_released_file_is_found_in_a_folder(trained, tmp_path, name):
    torch.save((fused if "fused" in name else ddpm)(trained), tmp_path / name)
    torch.testing.assert_close(run(unet2d.build(pretrained(tmp_path))), run(trained))


@pytest.mark.parametrize("safe", [pytest.param(True, id="safetensors"), pytest.param(False, id="bin")])
@pytest.mark.parametrize("part", ["", "unet"])
def test_a_diffusers_folder_loads(trained, tmp_path, safe, part):
    trained.save_pretrained(tmp_path / part, safe_serialization=safe)
    torch.testing.assert_close(run(unet2d.build(pretrained(tmp_path))), run(trained))


def test_a_diffusers_folder_of_another_network_is_refused(trained, tmp_path):
    """One that the weights would fit: nothing but its configuration tells it apart."""
    trained.save_pretrained(tmp_path)
    model = pretrained(tmp_path)
    model["config"]["freq_shift"] = 0
    with pytest.raises(JobFailure) as told:
        unet2d.build(model)
    wanted = "config.json has freq_shift=1 where model.config has 0; give the folder of that network, or its config."
    assert (told.value.status, str(told.value).endswith(wanted)) == ("invalid", True)


def test_a_diffusers_folder_without_its_config_is_told(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(JobFailure) as told:
        unet2d.weights_digest(pretrained(tmp_path))
    assert (told.value.status, "no config.json in" in str(told.value)) == ("missing_weights", True)


def test_the_digest_follows_the_file(trained, tmp_path):
    digests = set()
    for number, written in enumerate((ddpm, fused)):
        torch.save(written(trained), tmp_path / f"{number}.pth")
        digests.add(unet2d.weights_digest(pretrained(tmp_path / f"{number}.pth")))
    assert len(digests) == 2 and all(len(digest) == 12 for digest in digests)


MISFITS = [
    pytest.param(lambda state: state.pop("mid.block_1.norm1.bias"), "mid_block.resnets.0.norm1.bias", id="missing"),
    pytest.param(lambda state: state.update({"down.7.extra": torch.ones(1)}), "down.7.extra", id="unexpected"),
    pytest.param(
        lambda state: state.update({"conv_in.weight": torch.ones(4, 3, 3, 3)}), "conv_in.weight (4x3x3x3", id="shape"
    ),
]


@pytest.mark.parametrize("change, named", MISFITS)
def test_what_does_not_fit_is_named(trained, tmp_path, change, named):
    state = ddpm(trained)
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(JobFailure) as told:
        unet2d.build(pretrained(tmp_path / "weights.pth"))
    assert (told.value.status, named in str(told.value)) == ("invalid", True)


def test_a_fused_projection_of_another_length_is_named(trained, tmp_path):
    state = fused(trained)
    state["temb.dense.2.bias"] = state["temb.dense.2.bias"][:-1]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(JobFailure, match="temb.dense.2.bias"):
        unet2d.build(pretrained(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "path, named", [pytest.param(None, "model.weights_path", id="no path"), pytest.param("/nowhere", "/nowhere", id="no file")]
)  # fmt: skip
def test_missing_weights_say_what_to_fetch(path, named):
    with pytest.raises(JobFailure) as told:
        unet2d.weights_digest(tiny(weights="pretrained", weights_path=path))
    wanted = (named, "church256-ddim-unet.pth", "cs.cmu.edu/~sige", "diffusion_pytorch_model.safetensors")
    assert (told.value.status, [text for text in wanted if text not in str(told.value)]) == ("missing_weights", [])
