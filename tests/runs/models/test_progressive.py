"""Progressive Distillation's U-Nets: what they cost, what goes in, and how trained weights are found."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from sige.datasets.scene import scene
from sige.paths import conf_dir
from sige.runs.errors import JobFailure
from sige.runs.measure import count_dense
from sige.runs.models import progressive
from sige.runs.models.networks.progressive import embed, time_of
from sige.runs.models.zoo import Zoo

NAMES = ("pd_church128", "pd_church256")


def configured(name="pd_church128"):
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"), resolve=True)


def tiny(**changes):
    """A U-Net of the same kind at 32x32: three levels, attention at the two coarser."""
    model = configured()
    model["input"] = {"channels": 3, "height": 32, "width": 32}
    model["config"] = {
        "channels": 32,
        "multipliers": [1, 2, 2],
        "blocks": 1,
        "attention": [16, 8],
        "head": 32,
        "embedding": 48,
    }
    return {**model, **changes}


def pretrained(path):
    return tiny(weights="pretrained", weights_path=str(path), seed=5)


@torch.no_grad()
def run(module, seed=0):
    return progressive.forward(module, *progressive.inputs(tiny(), scene(32, 32), seed))


def failure(call, *arguments):
    with pytest.raises(JobFailure) as told:
        call(*arguments)
    return told.value.status, str(told.value)


# -- the published networks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoos():
    return {name: Zoo(configured(name), "meta") for name in NAMES}


@pytest.mark.parametrize("name, giga", [("pd_church128", (66.94, 66.94)), ("pd_church256", (118.7, 119.09))])
def test_dense_macs_are_the_published_ones(zoos, name, giga):
    side = zoos[name].model["input"]["height"]
    count = count_dense(zoos[name], zoos[name].inputs(torch.zeros(3, side, side), 0))
    assert 0.995 * giga[0] <= count.total / 1e9 <= 1.005 * giga[1] and count.unlisted == []


@pytest.mark.parametrize("name, millions", [("pd_church128", 139.58), ("pd_church256", 141.31)])
def test_parameters_are_the_published_ones(zoos, name, millions):
    assert zoos[name].parameters() / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_allocated_on_meta(zoos, name):
    module = zoos[name].module("contiguous", "float32")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


@pytest.mark.parametrize("policy", ["sige", "sige_public", "pixel"])
@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_of_the_dials_names_something(zoos, name, policy):
    import fnmatch

    paths = [path for path, _ in zoos[name].module("contiguous", "float32").named_modules()]
    patterns = zoos[name].model["dials"][policy]["dense_modules"]
    assert [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)] == []


RELEASED = {
    "temb.dense.0.weight": (768, 64),
    "temb.dense.1.bias": (768,),
    "conv_in.weight": (64, 3, 3, 3),
    "down.0.block.2.temb_proj.weight": (128, 768),
    "down.1.block.0.nin_shortcut.weight": (128, 64, 1, 1),
    "down.2.attn.1.qkv.weight": (768, 256, 1, 1),
    "down.3.downsample.conv1.weight": (384, 384, 3, 3),
    "mid.attn_1.proj_out.bias": (512,),
    "up.4.block.3.conv1.weight": (512, 512 + 384, 3, 3),
    "up.3.block.0.norm1.weight": (384 + 512,),
    "up.2.upsample.conv2.weight": (256, 256, 3, 3),
    "up.0.block.3.nin_shortcut.weight": (64, 128, 1, 1),
    "norm_out.bias": (64,),
    "conv_out.weight": (6, 64, 3, 3),
}


@pytest.mark.parametrize("key, shape", [pytest.param(key, shape, id=key) for key, shape in RELEASED.items()])
def test_parameters_bear_the_names_of_the_release(zoos, key, shape):
    assert tuple(zoos["pd_church128"].module("contiguous", "float32").state_dict()[key].shape) == shape


# -- the network ---------------------------------------------------------------------------------------------------------------


def test_the_output_has_a_picture_and_its_noise():
    output = run(progressive.build(tiny()))
    assert (tuple(output.shape), bool(output.isfinite().all()), output.std().item() > 0.01) == (
        (1, 6, 32, 32),
        True,
        True,
    )


def test_the_same_seed_gives_the_same_weights():
    assert torch.equal(run(progressive.build(tiny())), run(progressive.build(tiny())))


def test_another_seed_gives_other_weights():
    assert not torch.equal(run(progressive.build(tiny())), run(progressive.build(tiny(seed=1))))


@torch.no_grad()
def test_the_noise_level_changes_the_output():
    module, (sample, logsnr) = progressive.build(tiny()), progressive.inputs(tiny(), scene(32, 32), 0)
    assert not torch.allclose(module(sample, logsnr), module(sample, logsnr + 3), atol=1e-4)


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    module, (sample, logsnr) = progressive.build(tiny()), progressive.inputs(tiny(), scene(32, 32), 0)
    both = module(torch.cat([sample, -sample]), torch.cat([logsnr, logsnr + 2]))
    torch.testing.assert_close(both[1:], module(-sample, logsnr + 2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_is_softmax_over_all_positions():
    layer = progressive.build(tiny()).down[1].attn[0]
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    query, key, value = layer.qkv(layer.norm(x)).view(3, 2, 32, 16)  # two heads of 32
    share = torch.einsum("hdi,hdj->hij", query, key).div(32**0.5).softmax(2)
    mixed = torch.einsum("hij,hdj->hdi", share, value).reshape(1, 64, 4, 4)
    torch.testing.assert_close(layer(x), x + layer.proj_out(mixed), rtol=1e-4, atol=1e-5)


def test_embedded_steps_are_sines_and_cosines():
    made = embed(torch.tensor([3.0]), 8)[0]
    angles = [3.0 * 10000 ** (-index / 3) for index in range(4)]
    wanted = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    torch.testing.assert_close(made, torch.tensor(wanted))


@pytest.mark.parametrize("time", [0.0, 0.25, 0.625, 1.0])
def test_the_time_of_a_noise_level_is_the_schedules(time):
    assert time_of(torch.tensor(progressive.logsnr_at(time))).item() == pytest.approx(time, abs=1e-4)


# -- inputs ----------------------------------------------------------------------------------------------------------------------


def test_the_step_is_the_fifth_of_eight():
    level = progressive.inputs(tiny(), scene(32, 32), 0)[1]
    assert (tuple(level.shape), level.item()) == (
        (1,),
        pytest.approx(-2 * math.log(math.tan(math.pi / 2 * 0.625)), abs=1e-3),
    )


def test_signal_and_noise_add_up():
    picture = scene(32, 32)
    sample, logsnr = progressive.inputs(tiny(), picture, 7)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(7))
    wanted = logsnr.sigmoid().sqrt() * picture + (-logsnr).sigmoid().sqrt() * noise
    torch.testing.assert_close(sample[0], wanted)


def test_inputs_differ_where_the_picture_does():
    original = scene(32, 32)
    edited = original.clone()
    edited[:, 3:7, 20:22] = 1
    before, after = (progressive.inputs(tiny(), picture, 0)[0] for picture in (original, edited))
    assert torch.equal((before != after).any(1)[0], (original != edited).any(0))


REFUSED = [
    pytest.param(
        lambda model: model.update(input={"channels": 3, "height": 32, "width": 64}),
        "pd_church128 takes square pictures, not 32x64 ones.",
        id="oblong",
    ),
    pytest.param(
        lambda model: model.update(input={"channels": 3, "height": 30, "width": 30}),
        "pd_church128 has 3 levels: its picture's side must be a multiple of 4, not 30.",
        id="odd side",
    ),
    pytest.param(
        lambda model: model["config"].update(channels=40),
        "pd_church128 has 40 channels at 32x32, which must be a multiple of 32 groups.",
        id="groups",
    ),
    pytest.param(
        lambda model: model["config"].update(head=48),
        "pd_church128 has 64 channels at 16x16, which must be a multiple of 32 groups and of a head's 48 channels.",
        id="heads",
    ),
]


@pytest.mark.parametrize("change, sentence", REFUSED)
def test_a_config_of_no_such_network_is_refused(change, sentence):
    model = tiny()
    change(model)
    assert failure(progressive.build, model) == ("invalid", sentence)


def test_a_picture_of_another_size_is_refused():
    assert failure(progressive.inputs, tiny(), scene(64, 64), 0) == (
        "invalid",
        "pd_church128 takes pictures of 3x32x32, not 3x64x64.",
    )


@pytest.mark.parametrize("start", [0, 9])
def test_a_step_outside_the_schedule_is_refused(start):
    model = tiny(schedule={"steps": 8, "start": start})
    assert failure(progressive.inputs, model, scene(32, 32), 0) == (
        "invalid",
        f"pd_church128 has schedule.start={start}; choose one of the steps 1 to 8.",
    )


# -- trained weights ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return progressive.build(tiny(seed=1))


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda state: state, id="plain"),
        pytest.param(lambda state: {"model": state}, id="wrapped"),
        pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, id="parallel"),
    ],
)
def test_trained_weights_load(trained, tmp_path, written):
    torch.save(written(trained.state_dict()), tmp_path / "church128-pd-unet.pth")
    torch.testing.assert_close(run(progressive.build(pretrained(tmp_path))), run(trained))


def test_weights_of_another_network_are_refused(trained, tmp_path):
    state = trained.state_dict()
    state["down.0.extra.weight"] = state.pop("mid.attn_1.qkv.weight")
    torch.save(state, tmp_path / "a.pth")
    status, sentence = failure(progressive.build, pretrained(tmp_path / "a.pth"))
    assert (status, "1 missing: mid.attn_1.qkv.weight; 1 unexpected: down.0.extra.weight" in sentence) == (
        "invalid",
        True,
    )


def test_the_digest_follows_the_weights(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    torch.save(progressive.build(tiny(seed=2)).state_dict(), tmp_path / "b.pth")
    digests = {progressive.weights_digest(pretrained(tmp_path / name)) for name in ("a.pth", "b.pth")}
    assert (len(digests), progressive.weights_digest(tiny(seed=3))) == (2, "random:3")


@pytest.mark.parametrize(
    "name, told",
    [
        ("pd_church128", "church128-pd-unet.pth from https://www.cs.cmu.edu/~sige"),
        ("pd_church256", "none was released"),
    ],
)
@pytest.mark.parametrize("path", [None, "/nowhere"])
def test_missing_weights_say_what_to_fetch(name, told, path):
    status, sentence = failure(
        progressive.weights_digest, {**configured(name), "weights": "pretrained", "weights_path": path}
    )
    assert (status, told in sentence, "weights_path" in sentence) == ("missing_weights", True, True)


def test_other_weights_are_refused():
    assert failure(progressive.weights_digest, tiny(weights="scenes")) == (
        "missing_weights",
        "pd_church128 has no weights 'scenes'; there are random, pretrained.",
    )
