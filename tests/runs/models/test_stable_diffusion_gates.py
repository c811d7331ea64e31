"""What the published edits cost Stable Diffusion's networks, on meta tensors, against the reference engines' own counts.

The edits are real ones: where they are not on this machine, a case says so by name and counts nothing.
"""

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sige.datasets import registry
from sige.datasets.edit import MissingSample
from sige.runs.methods import session
from sige.runs.models.zoo import Zoo

CONF = Path(__file__).parents[3] / "conf" / "model"
HARDWARE = {"dtype": "float32"}


@functools.cache
def zoo_of(name):
    return Zoo(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")), "meta")


_recorded = {}


def recorded(model, policy, dials, inputs):
    """The runner of a policy, recorded once: on meta tensors one original is like another."""
    key = (model, policy, repr(dials))
    if key not in _recorded:
        options = {"policy": policy, "layout": "contiguous", "dials": dials}
        _recorded[key] = session.build("ours", options, zoo_of(model), HARDWARE)
        _recorded[key].record(inputs)
    return _recorded[key]


def effect_of(model, edit, policy, dials):
    """The effect of an edit, its text changed too where the edit is one of the prompt."""
    zoo = zoo_of(model)
    inputs = zoo.inputs(edit.original, 0)
    runner = recorded(model, policy, dials, inputs)
    changed = ()
    if edit.prompt:
        inputs, changed = zoo.loader.with_new_text(zoo.model, inputs, 0)
    with torch.no_grad(), runner.session.edit(edit.mask, changed=changed) as effect:
        zoo.loader.forward(runner.module, *inputs)
    return effect


def check(model, name, policy, dials, options, giga, within):
    try:
        edit = registry.load(name, **options)
    except MissingSample as error:
        assert name in str(error)
        return
    effect = effect_of(model, edit, policy, dials)
    assert (effect.macs / 1e9, effect.fallbacks) == (pytest.approx(giga, rel=within), [])


UNET = [("sdedit-0", 224.5), ("sdedit-1", 351.9), ("inpaint-0", 513.3)]
ENCODER = [("sdedit-0", 39.1), ("sdedit-1", 76.2), ("inpaint-0", 160.2)]
WIDE = ({"dilation": 0}, {"dilation": [5, 40]})  # SIGE decodes its stroke edits with a wider mask that does not grow
DECODER = [("sdedit-0", *WIDE, 153.9), ("sdedit-1", *WIDE, 317.7), ("inpaint-0", {}, {}, 342.9)]


@pytest.mark.parametrize("name, giga", UNET)
def test_siges_u_net(name, giga):
    check("sd14_unet", name, "sige", {}, {}, giga, 0.01)


@pytest.mark.parametrize("name, giga", ENCODER)
def test_siges_encoder(name, giga):
    check("sd_vae_encoder", name, "sige", {}, {}, giga, 0.01)


@pytest.mark.parametrize("name, dials, options, giga", DECODER, ids=[case[0] for case in DECODER])
def test_siges_decoder(name, dials, options, giga):
    check("sd_vae_decoder", name, "sige", dials, options, giga, 0.01)


# FISEdit's engine: every level sparse, or its quality setting; keys and values of the edited tokens, or of all.
SETTINGS = [
    pytest.param("fisedit_radical", "active", (142, 415, 812), id="all levels, radical"),
    pytest.param("fisedit_radical", "reprojected", (222, 544, 981), id="all levels, all keys"),
    pytest.param("fisedit", "active", (274, 513, 869), id="quality levels, radical"),
    pytest.param("fisedit", "reprojected", (336, 626, 1026), id="quality levels, all keys"),
]


@pytest.mark.parametrize("place, name", enumerate(("fisedit-88", "fisedit-3", "fisedit-12")))
@pytest.mark.parametrize("policy, kv, giga", SETTINGS)
def test_fisedits_four_settings(policy, kv, giga, place, name):
    check("sd21_unet", name, policy, {"kv": kv}, {}, giga[place], 0.02)


@pytest.mark.parametrize("name", ["sdedit-0", "sdedit-1", "inpaint-0"])
def test_ours_costs_less_than_siges(name):
    try:
        edit = registry.load(name)
    except MissingSample as error:
        assert name in str(error)
        return
    ours, theirs = (effect_of("sd14_unet", edit, policy, {}).macs for policy in ("incremental", "sige"))
    assert ours < theirs
