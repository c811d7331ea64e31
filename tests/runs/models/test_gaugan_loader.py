"""GauGAN's loader: the four configurations, random weights that paint, and state dicts in every released layout."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from sige.datasets import registry
from sige.paths import conf_dir
from sige.runs.errors import JobFailure
from sige.runs.models import gaugan

NAMES = ("gaugan_cityscapes", "gaugan_ngf12", "gan_compression", "gan_compression_small")
MODELS = [pytest.param(name, id=name) for name in NAMES]
KINDS = [pytest.param("gaugan_cityscapes", id="spade"), pytest.param("gan_compression", id="mobile")]
TINY = {"gaugan_cityscapes": 4, "gan_compression": "4_5_3_4_6_5_4_3"}


def config(name):
    """The model's configuration as the runner resolves it."""
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"), resolve=True)


def tiny(name, **changes):
    """The same with few channels, at 64x128."""
    model = config(name)
    model["config"]["channels"], model["input"] = TINY[name], {"channels": 36, "height": 64, "width": 128}
    return {**model, **changes}


def pretrained(name, path):
    return tiny(name, weights="pretrained", weights_path=str(path))


@torch.no_grad()
def paint(module, seed=0):
    picture = torch.rand(1, 36, 64, 128, generator=torch.Generator().manual_seed(seed))
    return gaugan.forward(module, picture)


def unmerged(state):
    """A state dict as SPADE's and GAN Compression's own code writes it: a convolution of the labels for each normalisation."""
    apart = {}
    for key, value in state.items():
        block, _, rest = key.partition(".")
        if rest.startswith("mlp_shared"):
            norms = "01s" if f"{block}.conv_s.weight" in state else "01"
            apart.update({f"{block}.norm_{n}.{rest}": part for n, part in zip(norms, value.chunk(len(norms)))})
        elif "mlp_gamma_beta" in rest:
            gamma, beta = value.chunk(2)
            apart[key.replace("gamma_beta", "gamma")], apart[key.replace("gamma_beta", "beta")] = gamma, beta
        else:
            apart[key] = value
    return apart


def normalised(state):
    """The keys of weights that SPADE normalises by their largest singular value."""
    return [key for key in state if key.split(".")[-2] in ("conv_0", "conv_1", "conv_s") and key.endswith(".weight")]


def singular(weight):
    """u, v and u W v of a weight, after half a power iteration."""
    matrix = weight.flatten(1)
    u = torch.ones(len(matrix)) / len(matrix) ** 0.5
    v = nn.functional.normalize(matrix.T @ u, dim=0)
    return u, v, torch.dot(u, matrix @ v)


def spectral(state):
    """A state dict as a generator has it that normalises in each forward: weights not yet divided, beside their u and v."""
    made = {key: value for key, value in state.items() if key not in normalised(state)}
    for key in normalised(state):
        made[f"{key}_orig"] = 2 * state[key]
        made[f"{key}_u"], made[f"{key}_v"], _ = singular(state[key])
    return made


def divided(state):
    """What ``spectral`` stands for."""
    return {key: value / singular(value)[2] if key in normalised(state) else value for key, value in state.items()}


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    """A tiny generator with statistics as training leaves them."""
    made = gaugan.build(tiny(name))
    generator = torch.Generator().manual_seed(1)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_on_meta_tensors(name):
    with torch.device("meta"):
        module = gaugan.build(config(name))
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_policies_have_dials_of_their_own(name):
    dials = config(name)["dials"]
    least = 16 if name.startswith("gaugan") else 32
    wanted = {"min_resolution": least, "dilation": 2, "dense_modules": ["conv_img"]}
    assert {policy: dials[policy] for policy in ("sige", "sige_public", "pixel")} == dict.fromkeys(
        ("sige", "sige_public", "pixel"), wanted
    )


def test_the_same_seed_gives_the_same_weights(name):
    assert torch.equal(paint(gaugan.build(tiny(name))), paint(gaugan.build(tiny(name))))


def test_another_seed_gives_other_weights(name):
    assert not torch.equal(paint(gaugan.build(tiny(name))), paint(gaugan.build(tiny(name, seed=1))))


def test_random_weights_paint_with_contrast_and_without_saturation(name):
    edit = registry.load("labels-5", height=64, width=128)
    picture = gaugan.forward(gaugan.build(tiny(name)), *gaugan.inputs(tiny(name), edit.original, 0))
    assert (0.1 < picture.std() < 0.7, (picture.abs() > 0.99).float().mean() < 0.1) == (True, True)


def test_a_changed_label_shows_where_it_is(name):
    edit, module = registry.load("labels-5", height=64, width=128), gaugan.build(tiny(name))
    before, after = (
        gaugan.forward(module, *gaugan.inputs(tiny(name), side, 0)) for side in (edit.original, edit.edited)
    )
    changed = (after - before).abs().mean(1)[0]
    assert changed[edit.mask].mean() > 3 * changed[~edit.mask].mean() > 0


def test_inputs_are_the_labels_whatever_the_seed(name):
    labels = registry.load("labels-5", height=64, width=128).original
    first, second = gaugan.inputs(tiny(name), labels, 0)[0], gaugan.inputs(tiny(name), labels, 1)[0]
    assert torch.equal(first, labels[None]) and torch.equal(first, second)


LAYOUTS = [
    pytest.param(lambda state: state, lambda state: state, id="merged"),
    pytest.param(unmerged, lambda state: state, id="one by one"),
    pytest.param(lambda state: spectral(unmerged(state)), divided, id="spectral"),
    pytest.param(
        lambda state: {key: value for key, value in spectral(unmerged(state)).items() if not key.endswith("_v")},
        divided,
        id="spectral without v",
    ),
    pytest.param(lambda state: {**spectral(state), **state}, lambda state: state, id="spectral with the weight last used"),
    pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, lambda state: state, id="parallel"),
    pytest.param(
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key}, lambda state: state, id="no counters"
    ),
    pytest.param(
        lambda state: {key: torch.cat([value, value]) if "running" in key else value for key, value in state.items()},
        lambda state: state,
        id="wider statistics",
    ),
]  # fmt: skip


@pytest.mark.parametrize("written, meant", LAYOUTS)
def test_a_released_layout_loads(name, module, tmp_path, written, meant):
    state = module.state_dict()
    torch.save(written(state), tmp_path / "generator.pth")
    expected = copy.deepcopy(module)
    expected.load_state_dict(meant(state))
    torch.testing.assert_close(
        paint(gaugan.build(pretrained(name, tmp_path / "generator.pth"))), paint(expected), rtol=1e-3, atol=1e-4
    )


def test_spectral_normalisation_is_divided_out_as_pytorch_does():
    torch.manual_seed(0)
    layer = nn.utils.spectral_norm(nn.Conv2d(6, 5, 3))
    for _ in range(3):
        layer(torch.randn(1, 6, 8, 8))
    state = {f"conv_0.{key}": value.detach().clone() for key, value in layer.state_dict().items()}
    plain = nn.utils.remove_spectral_norm(layer.eval()).state_dict()
    torch.testing.assert_close(
        gaugan.without_spectral_norm(state), {f"conv_0.{key}": plain[key] for key in ("bias", "weight")}
    )


def test_a_folder_with_the_released_file_loads(name, module, tmp_path):
    torch.save(module.state_dict(), tmp_path / config(name)["released"][0])
    assert torch.equal(paint(gaugan.build(pretrained(name, tmp_path))), paint(module))


def test_the_digest_follows_the_file(name, module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "generator.pth")
    before = gaugan.weights_digest(pretrained(name, tmp_path / "generator.pth"))
    torch.save(gaugan.build(tiny(name, seed=1)).state_dict(), tmp_path / "generator.pth")
    assert gaugan.weights_digest(pretrained(name, tmp_path / "generator.pth")) != before


def failure(call):
    with pytest.raises(JobFailure) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


def test_keys_that_do_not_fit_are_named(name, module, tmp_path):
    state = unmerged(module.state_dict())
    state["up_4.conv_0.weight"] = state.pop("conv_img.weight")
    torch.save(state, tmp_path / "generator.pth")
    status, reason = failure(lambda: gaugan.build(pretrained(name, tmp_path / "generator.pth")))
    assert (status, "conv_img.weight" in reason, "up_4.conv_0.weight" in reason) == ("invalid", True, True)


def test_a_checkpoint_of_another_width_is_named(name, module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "generator.pth")
    model = pretrained(name, tmp_path / "generator.pth")
    model["config"]["channels"] = "5_5_5_5_5_5_5_5"
    status, reason = failure(lambda: gaugan.build(model))
    assert (status, "fc.weight" in reason) == ("invalid", True)


@pytest.mark.parametrize("name", MODELS)
def test_missing_weights_say_what_to_fetch(name, tmp_path):
    model = {**config(name), "weights": "pretrained", "weights_path": str(tmp_path / "nowhere")}
    status, reason = failure(lambda: gaugan.weights_digest(model))
    wanted = (*model["released"], "cs.cmu.edu/~sige") if model["released"] else ("none was released",)
    assert (status, [text for text in wanted if text not in reason]) == ("missing_weights", [])


def test_other_weights_are_refused(name):
    status, reason = failure(lambda: gaugan.weights_digest(tiny(name, weights="scenes")))
    assert (status, reason) == ("missing_weights", f"{name} has no weights 'scenes'; there are random, pretrained.")


def test_another_kind_is_refused(name):
    model = tiny(name)
    model["config"]["kind"] = "oasis"
    assert failure(lambda: gaugan.build(model)) == ("invalid", f"unknown kind 'oasis' of {name}; choose spade, mobile.")


@pytest.mark.parametrize(
    "channels", [pytest.param(value, id=str(value)) for value in (0, "32_32", 3232324832242432, "a_b", None)]
)
def test_channels_that_do_not_read_are_refused(channels):
    status, reason = failure(lambda: gaugan.widths({"channels": channels}))
    assert (status, reason.endswith(f"not {channels!r}.")) == ("invalid", True)


def test_a_picture_of_colours_is_refused(name):
    status, reason = failure(lambda: gaugan.inputs(tiny(name), torch.zeros(3, 64, 128), 0))
    assert (status, reason) == (
        "invalid", f"{name} takes label maps of 36 channels, not 3; choose edit=cityscapes-pair or labels-1.2."
    )  # fmt: skip


def test_a_map_of_an_odd_size_is_refused(name):
    status, reason = failure(lambda: gaugan.inputs(tiny(name), torch.zeros(36, 60, 128), 0))
    assert (status, reason) == ("invalid", f"{name} takes label maps whose sides are multiples of 64, not 60x128.")
