"""Trained weights in a diffusers folder: a part of a pipeline (``unet/``, ``vae/``) or the folder of the part alone."""

import json
from pathlib import Path

from sige.runs.errors import JobFailure

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def find(model: dict, part: str) -> Path:
    """The folder that holds ``part`` ("unet", "vae") of ``model.weights_path`` or of ``model.repository`` in the hub's local cache.

    JobFailure(missing_weights) says what to fetch and where to put it. Nothing is fetched.
    """
    from sige.runs.models import checkpoints

    top = checkpoints.hub_folder(model, f"a diffusers folder with {part}/{CONFIG} and {part}/{WEIGHTS[0]}")
    folder = top / part if (top / part).is_dir() else top
    for wanted, choices in ((CONFIG, (CONFIG,)), (WEIGHTS[0], WEIGHTS)):
        if not any((folder / name).is_file() for name in choices):
            raise JobFailure(
                "missing_weights",
                f"{model['name']}: no {wanted} in {folder}; give a diffusers folder that holds it there or in {part}/.",
            )
    return folder


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder that :func:`find` returned; safetensors where there are both."""
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def check_config(model: dict, folder: Path) -> None:
    """JobFailure(invalid) where the folder's network is another than the one that ``model.config`` describes."""
    there = json.loads((folder / CONFIG).read_text())
    for key, wanted in model["config"].items():
        if key in there and key != "sample_size" and there[key] != wanted:
            raise JobFailure(
                "invalid",
                f"{model['name']}: {folder / CONFIG} has {key}={there[key]!r} where model.config has {wanted!r}; "
                "give the folder of that network, or its config.",
            )


def load(kind, model: dict, part: str):
    """The trained network: ``kind`` is the diffusers class. JobFailure(missing_weights, invalid) where it cannot be."""
    folder = find(model, part)
    check_config(model, folder)
    safe = weights_file(folder).suffix == ".safetensors"
    return kind.from_pretrained(folder, local_files_only=True, use_safetensors=safe)


def digest(model: dict, part: str) -> str:
    """Digest of the trained weights of ``part``, or the seed of random ones. JobFailure(missing_weights) where there are none."""
    from sige.runs.models import checkpoints

    return checkpoints.weights_digest(model, lambda: checkpoints.digest(weights_file(find(model, part))))
