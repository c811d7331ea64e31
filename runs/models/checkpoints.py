"""Files of trained weights: where they lie, what they are called by, and how they get into a network. Nothing is fetched.

``model`` is the resolved config of the group ``model``; of it ``name``, ``weights_path``, ``repository`` and ``revision`` are read.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from sige.runs.errors import JobFailure

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_WRAPPERS = ("ema", "state_dict", "model_state_dict", "model", "params", "module")
_SHOWN = 3  # keys of each kind that a sentence about a misfit names


def locate(model: dict, what: str, files: tuple[str, ...] = ()) -> Path:
    """The file of weights: ``weights_path`` itself, or the first of ``files`` that is in the folder ``weights_path``.

    ``what`` says in words what to fetch. JobFailure(missing_weights) where there is none; a folder of exactly one file of weights is
    taken for that file where ``files`` is empty.
    """
    path = _given(model, what)
    if path.is_file():
        return path
    if not path.is_dir():
        raise _missing(model, what, f"there is nothing at {path}")
    found = [path / name for name in files if (path / name).is_file()]
    if files and not found:
        raise _missing(model, what, f"no {' or '.join(files)} in {path}")
    if not files:
        found = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix in SUFFIXES)
        if len(found) != 1:
            raise _missing(model, what, f"{len(found)} files of weights in the folder {path}, and one is needed")
    return found[0]


def hub_folder(model: dict, what: str) -> Path:
    """The folder ``weights_path`` where it is given, else that of ``repository`` (at ``revision``) in the hub's local cache.

    JobFailure(missing_weights) says what to fetch and where to put it. Nothing is fetched, whatever the network allows.
    """
    repository = model.get("repository")
    if model.get("weights_path") or not repository:
        path = _given(model, what)
        if not path.is_dir():
            raise _missing(model, what, f"there is no folder {path}")
        return path
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    revision = model.get("revision")
    try:
        folder = snapshot_download(
            repository, revision=revision, cache_dir=constants.HF_HUB_CACHE, local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError):
        named = f"{repository} at revision {revision}" if revision else repository
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise JobFailure(
            "missing_weights",
            f"{model['name']} with weights=pretrained needs {what}: {named} is not in the hub's cache {constants.HF_HUB_CACHE}; "
            f"fetch it with `{command}`, or put it in a folder and give model.weights_path.",
        ) from None
    return Path(folder)


def _given(model: dict, what: str) -> Path:
    """``weights_path``; JobFailure(missing_weights) where the config gives none."""
    path = model.get("weights_path")
    if not path:
        raise JobFailure(
            "missing_weights", f"{model['name']} with weights=pretrained needs {what}: give it as model.weights_path."
        )
    return Path(path).expanduser()


def _missing(model: dict, what: str, why: str) -> JobFailure:
    return JobFailure(
        "missing_weights", f"{model['name']}: {why}; put {what} there, or give its place as model.weights_path."
    )


def weights_digest(model: dict, trained: Callable[[], str]) -> str:
    """What tells a model's weights from others: the seed of random ones, ``trained()`` of pretrained ones.

    JobFailure(missing_weights) for weights that are neither.
    """
    if model["weights"] == "random":
        return f"random:{model['seed']}"
    if model["weights"] != "pretrained":
        raise JobFailure(
            "missing_weights", f"{model['name']} has no weights {model['weights']!r}; there are random, pretrained."
        )
    return trained()


def released(model: dict, address: str, network: str) -> Path:
    """The file of weights as their authors released it: one of ``released`` in the config, fetched from ``address``."""
    names = tuple(model["released"])
    what = f"{' or '.join(names)} from {address}" if names else f"a state dict of this {network} (none was released)"
    return locate(model, what, names)


def digest(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Names and tensors of a file of weights, on the CPU.

    ``.safetensors``, or what ``torch.save`` wrote, read without running anything it holds. A state dict may stand under "state_dict",
    "model" and the like, or in the list that DDPM's training code saves. A running average (under "ema", or last in the list) is
    preferred to the weights it averages.
    JobFailure(invalid) for a file that holds none.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles, archives and headers each fail in their own ways
        said = " ".join(str(error).split()).split(". ")[0][:200]
        raise JobFailure(
            "invalid", f"{path} cannot be read as weights ({type(error).__name__}: {said}); give a state dict."
        ) from None
    state = _unwrapped(content)
    if state is None:
        raise JobFailure("invalid", f"{path} holds no state dict, a mapping from names to tensors; give one that does.")
    return state


def _unwrapped(content) -> dict | None:
    """The innermost state dict of what a file holds, None where there is none."""
    if isinstance(content, list | tuple):
        states = [_unwrapped(part) for part in content]
        return next((state for state in reversed(states) if state), None)
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(content)
    return next((state for key in _WRAPPERS if (state := _unwrapped(content.get(key)))), None)


def assign(module: nn.Module, state: Mapping[str, torch.Tensor], rename: Callable[[str], str | None]) -> None:
    """Put the tensors of ``state`` into ``module``, each under ``rename(key)``; None drops it. All must fit, or nothing is changed.

    JobFailure(invalid) names keys that are missing, unexpected, twice there or wrongly shaped: the first few and how many.
    """
    wanted = module.state_dict()
    renamed, twice = {}, []
    for key, value in state.items():
        name = rename(key)
        if name in renamed:
            twice.append(key)
        elif name is not None:
            renamed[name] = value
    missing = [key for key in wanted if key not in renamed]
    unexpected = [key for key in renamed if key not in wanted]
    shaped = [
        f"{key} ({_size(renamed[key])}, not {_size(tensor)})"
        for key, tensor in wanted.items()
        if key in renamed and renamed[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shaped, "there twice": twice}
    wrong = [f"{len(keys)} {kind}: {_few(keys)}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise JobFailure(
            "invalid",
            f"the weights do not fit this {type(module).__name__}, keys {'; '.join(wrong)}; "
            "give weights of the network of model.config.",
        )
    module.load_state_dict(renamed)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
