"""What Stable Diffusion 2.1 at 768x768 with guidance remembers for a step, and what of it an edit reads, on meta tensors."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sige.datasets import registry
from sige.datasets.edit import MissingSample
from sige.runs.methods import session
from sige.runs.models.zoo import Zoo

CONF = Path(__file__).parents[3] / "conf" / "model" / "sd21_unet.yaml"
STEPS = 2  # they share the projections of the text, as all of a sampler's do
SHAPES = {"rectangle": (slice(200, 376), slice(300, 468)), "strip": (slice(0, 40), slice(0, 752))}  # 5 % of the picture


@pytest.fixture(scope="module")
def recorded():
    """``recorded(state_dtype)``: a session with two recorded steps of the network in bfloat16."""
    zoo, made = Zoo(OmegaConf.to_container(OmegaConf.load(CONF)), "meta"), {}
    inputs = zoo.inputs(torch.zeros(3, 768, 768), 0)

    def make(state_dtype):
        if state_dtype not in made:
            options = {"policy": "incremental", "layout": "contiguous", "dials": {"state_dtype": state_dtype}}
            runner = session.build("ours", options, zoo, {"dtype": "bfloat16"})
            adapted = zoo.adapt(inputs, "contiguous", "bfloat16")
            with torch.no_grad(), runner.session.record():
                for _ in range(STEPS):
                    zoo.loader.forward(runner.module, *adapted)
            made[state_dtype] = runner.session
        return made[state_dtype]

    return make


@pytest.mark.parametrize(
    "state_dtype, megabytes",
    [pytest.param("bfloat16", 560, id="bfloat16"), pytest.param("float8_e4m3fn", 290, id="float8")],
)
def test_a_step_remembers_at_most(recorded, state_dtype, megabytes):
    remembered = sum(recorded(state_dtype).state_bytes().values()) / STEPS / 1e6
    assert 0.95 * megabytes < remembered <= megabytes


def mask_of(name):
    """The mask of a published edit, None where it is not on this machine; or one of ``SHAPES``."""
    if name in SHAPES:
        mask = torch.zeros(768, 768, dtype=torch.bool)
        mask[SHAPES[name]] = True
        return mask
    try:
        return registry.load(name).mask
    except MissingSample as error:
        assert name in str(error)


@pytest.mark.parametrize("name", ["fisedit-88", *SHAPES])
def test_rings_of_an_edit_of_5_percent_are_a_small_part_of_the_maps(recorded, name):
    mask = mask_of(name)
    if mask is not None:
        travel, state = (recorded("bfloat16").travel_bytes(mask), recorded("bfloat16").state_bytes())
        assert 0.01 < travel["ring"] / state["conv_input"] <= 0.15
        assert (travel["kv"], travel["exit"]) == (state["kv"], 0)
