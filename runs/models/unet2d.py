"""diffusers' own UNet2DModel, one denoising step as SDEdit runs it."""

import hashlib
from pathlib import Path

import torch

from sige.runs.errors import JobFailure

CHANGED = (0,)
_FILES = ("diffusion_pytorch_model.safetensors", "config.json")


def _folder(model: dict) -> Path:
    """Local folder of pretrained weights; JobFailure(missing_weights) says where it was looked for."""
    path = model.get("weights_path")
    if not path:
        raise JobFailure(
            "missing_weights",
            f"{model['name']} with weights=pretrained needs model.weights_path, a folder with {_FILES[0]}.",
        )
    folder = Path(path).expanduser()
    if not (folder / _FILES[0]).is_file():
        raise JobFailure("missing_weights", f"{model['name']}: no {_FILES[0]} in {folder}.")
    return folder


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of pretrained ones."""
    if model["weights"] == "random":
        return f"random:{model['seed']}"
    if model["weights"] != "pretrained":
        raise JobFailure(
            "missing_weights", f"{model['name']} has no weights {model['weights']!r}; there are random, pretrained."
        )
    with open(_folder(model) / _FILES[0], "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def build(model: dict) -> torch.nn.Module:
    """The network with random weights of the config's seed, or the pretrained ones of the config's folder."""
    from diffusers import UNet2DModel

    if model["weights"] == "pretrained":
        module = UNet2DModel.from_pretrained(_folder(model), local_files_only=True)
    else:
        torch.manual_seed(model["seed"])
        module = UNet2DModel(**model["config"])
    return module.float().eval().requires_grad_(False)


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, C, H, W) picture noised to the config's time step, and the step: sqrt(a) x + sqrt(1 - a) e, with the same
    noise e for the same seed (SDEdit: the original and the edited picture share it)."""
    betas = torch.linspace(model["betas"]["start"], model["betas"]["end"], model["betas"]["steps"], dtype=torch.float64)
    alpha = (1 - betas).cumprod(0)[model["timestep"]].item()
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return (alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise)[None], torch.tensor([model["timestep"]])


def forward(module: torch.nn.Module, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Predicted noise, (1, C, H, W)."""
    return module(sample, timestep).sample
