"""Files of weights: found or named as missing, read in every wrapping, and put into a network whole or not at all."""

import hashlib

import pytest
import torch
from torch import nn

from sige.runs.errors import JobFailure
from sige.runs.models import checkpoints

WHAT = "net.pth from the release"


def failure(call, *arguments):
    """(status, sentence) of the JobFailure that a call ends with."""
    with pytest.raises(JobFailure) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


def model(path=None, **more):
    return {"name": "net", "weights": "pretrained", "weights_path": path and str(path), **more}


# -- where they lie ----------------------------------------------------------------------------------------------------


def test_a_file_is_itself(tmp_path):
    (tmp_path / "a.pth").touch()
    assert checkpoints.locate(model(tmp_path / "a.pth"), WHAT, ("b.pth",)) == tmp_path / "a.pth"


def test_the_first_named_file_of_a_folder_is_taken(tmp_path):
    for name in ("a.pth", "b.pth", "c.pth"):
        (tmp_path / name).touch()
    assert checkpoints.locate(model(tmp_path), WHAT, ("x.pth", "c.pth", "a.pth")) == tmp_path / "c.pth"


def test_the_only_weights_of_a_folder_are_taken(tmp_path):
    for name in ("a.safetensors", "readme.md"):
        (tmp_path / name).touch()
    assert checkpoints.locate(model(tmp_path), WHAT) == tmp_path / "a.safetensors"


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pth").touch()
    assert checkpoints.locate(model("~/a.pth"), WHAT) == tmp_path / "a.pth"


def test_no_path_says_where_to_give_one():
    assert failure(checkpoints.locate, model(), WHAT) == (
        "missing_weights",
        f"net with weights=pretrained needs {WHAT}: give it as model.weights_path.",
    )


def test_a_path_to_nothing_is_named():
    assert failure(checkpoints.locate, model("/nowhere"), WHAT) == (
        "missing_weights",
        f"net: there is nothing at /nowhere; put {WHAT} there, or give its place as model.weights_path.",
    )


def test_a_folder_without_the_named_files_is_named(tmp_path):
    status, sentence = failure(checkpoints.locate, model(tmp_path), WHAT, ("a.pth", "b.pth"))
    assert (status, sentence.split("; ")[0]) == ("missing_weights", f"net: no a.pth or b.pth in {tmp_path}")


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_of_unclear_weights_is_named(tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.pth").touch()
    status, sentence = failure(checkpoints.locate, model(tmp_path), WHAT)
    assert (status, sentence.startswith(f"net: {count} files of weights in the folder")) == ("missing_weights", True)


# -- the hub's cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds some/repository, revision main; the network may not be reached."""
    import socket

    from huggingface_hub import constants

    revision = "0" * 40
    folder = tmp_path / "models--some--repository"
    (folder / "snapshots" / revision / "unet").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def unreachable(*arguments, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    return folder / "snapshots" / revision


def test_a_repository_is_found_in_the_cache(cache):
    assert checkpoints.hub_folder(model(repository="some/repository"), WHAT) == cache


def test_a_given_folder_comes_before_the_repository(cache, tmp_path):
    assert checkpoints.hub_folder(model(cache.parent, repository="some/repository"), WHAT) == cache.parent


def test_a_repository_that_is_not_there_is_told(cache, tmp_path):
    status, sentence = failure(checkpoints.hub_folder, model(repository="other/one"), WHAT)
    assert (status, sentence) == (
        "missing_weights",
        f"net with weights=pretrained needs {WHAT}: other/one is not in the hub's cache {tmp_path}; "
        "fetch it with `hf download other/one`, or put it in a folder and give model.weights_path.",
    )


def test_a_revision_that_is_not_there_is_told(cache):
    status, sentence = failure(checkpoints.hub_folder, model(repository="some/repository", revision="fp16"), WHAT)
    assert (status, "some/repository at revision fp16" in sentence) == ("missing_weights", True)
    assert "hf download some/repository --revision fp16" in sentence


def test_a_name_that_is_no_repository_is_told(cache):
    assert failure(checkpoints.hub_folder, model(repository="a/b/c"), WHAT)[0] == "missing_weights"


@pytest.mark.parametrize(
    "given, named", [pytest.param({}, "weights_path", id="neither"), pytest.param({"path": "/nowhere"}, "/nowhere", id="path")]
)  # fmt: skip
def test_no_folder_is_told(given, named):
    status, sentence = failure(checkpoints.hub_folder, model(**given), WHAT)
    assert (status, named in sentence, WHAT in sentence) == ("missing_weights", True, True)


# -- what they hold --------------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    assert checkpoints.digest(tmp_path / "a.pth") == hashlib.sha256(b"weights").hexdigest()[:12]


ONE, OTHER = {"weight": torch.ones(2)}, {"weight": torch.zeros(2)}
WRAPPED = [
    pytest.param(ONE, id="plain"),
    pytest.param({"state_dict": ONE, "epoch": 3}, id="state_dict"),
    pytest.param({"model": ONE, "optimizer": {"step": 1}}, id="model"),
    pytest.param({"model": {"state_dict": ONE}}, id="twice"),
    pytest.param({"model": OTHER, "ema": ONE}, id="average"),
    pytest.param([OTHER, {"state": {}, "param_groups": []}, 7, 100, ONE], id="DDPM list"),
    pytest.param([ONE, {"state": {}, "param_groups": []}, 7, 100], id="list without average"),
]


@pytest.mark.parametrize("content", WRAPPED)
def test_a_state_dict_is_unwrapped(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    state = checkpoints.load_state(tmp_path / "a.ckpt")
    assert list(state) == ["weight"] and torch.equal(state["weight"], torch.ones(2))


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file(ONE, tmp_path / "a.safetensors")
    assert torch.equal(checkpoints.load_state(tmp_path / "a.safetensors")["weight"], torch.ones(2))


@pytest.mark.parametrize(
    "content", [pytest.param(value, id=str(value)) for value in ({"epoch": 3}, {}, 7, [1, 2], {"state_dict": 5})]
)
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    status, sentence = failure(checkpoints.load_state, tmp_path / "a.ckpt")
    assert (status, sentence) == (
        "invalid",
        f"{tmp_path / 'a.ckpt'} holds no state dict, a mapping from names to tensors; give one that does.",
    )


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_broken_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    status, sentence = failure(checkpoints.load_state, tmp_path / name)
    assert (status, sentence.startswith(f"{tmp_path / name} cannot be read as weights")) == ("invalid", True)


def test_a_pickle_that_runs_something_is_refused(tmp_path):
    torch.save({"weight": nn.Linear(1, 1)}, tmp_path / "a.pth")
    assert failure(checkpoints.load_state, tmp_path / "a.pth")[0] == "invalid"


# -- into a network ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))


def state(**changes):
    made = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "2.weight": torch.ones(1, 3)}
    return {**made, **changes}


def test_names_are_translated_and_others_dropped(network):
    given = {f"net.{key}": value for key, value in state().items()} | {"steps": torch.ones(1)}
    checkpoints.assign(network, given, lambda key: None if key == "steps" else key.removeprefix("net."))
    assert all(bool((parameter == 1).all()) for parameter in network.parameters())


def test_weights_take_the_networks_dtype(network):
    checkpoints.assign(network, {key: value.half() for key, value in state().items()}, lambda key: key)
    assert network[0].weight.dtype == torch.float32


MISFITS = [
    pytest.param(lambda given: given.pop("0.bias"), "1 missing: 0.bias", id="missing"),
    pytest.param(lambda given: given.update(extra=torch.ones(1)), "1 unexpected: extra", id="unexpected"),
    pytest.param(
        lambda given: given.update({"2.weight": torch.ones(3)}), "1 of another shape: 2.weight (3, not 1x3)", id="shape"
    ),
    pytest.param(
        lambda given: given.update({f"x{number}": torch.ones(1) for number in range(5)}),
        "5 unexpected: x0, x1, x2, ...",
        id="many",
    ),
]


@pytest.mark.parametrize("change, told", MISFITS)
def test_what_does_not_fit_is_named(network, change, told):
    given = state()
    change(given)
    assert failure(checkpoints.assign, network, given, lambda key: key) == (
        "invalid",
        f"the weights do not fit this Sequential, keys {told}; give weights of the network of model.config.",
    )


def test_two_keys_of_one_name_are_refused(network):
    given = state(other=torch.ones(3))
    sentence = failure(checkpoints.assign, network, given, lambda key: "0.bias" if key == "other" else key)[1]
    assert "keys 1 there twice: other;" in sentence


def test_nothing_changes_where_something_does_not_fit(network):
    before = network[0].weight.clone()
    failure(checkpoints.assign, network, state(extra=torch.ones(1)), lambda key: key)
    assert torch.equal(network[0].weight, before)
