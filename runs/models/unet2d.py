"""diffusers' own UNet2DModel, one denoising step as SDEdit runs it.

Trained weights are a diffusers folder, or a state dict in the names of DDPM's code: the releases of DDPM's church model converted to
PyTorch, and SIGE's, whose fused one computes queries, keys and values in one layer and all projections of the time step in another.
"""

import re
from pathlib import Path

import torch

from sige.runs.models import diffusers_folder

CHANGED = (0,)
_RELEASED = ("church256-ddim-unet.pth", "church256-ddim-fused_unet.pth")
_RELEASE = "https://www.cs.cmu.edu/~sige/resources/models/diffusion/"
_TOP = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
}
_BLOCK = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_EVERY_PROJECTION = "temb.dense.2"  # of the time step, one after the other, in the fused state dict


def _source(model: dict) -> Path:
    """The diffusers folder, or the file of a state dict. JobFailure(missing_weights) says what to fetch and where to put it."""
    from sige.runs.models import checkpoints

    path = Path(model.get("weights_path") or "").expanduser()
    folders = (path, path / "unet") if model.get("weights_path") else ()
    if any((folder / name).is_file() for folder in folders for name in diffusers_folder.WEIGHTS):
        return diffusers_folder.find(model, "unet")
    needed = f"{diffusers_folder.WEIGHTS[0]} and {diffusers_folder.CONFIG}"
    what = f"a diffusers folder with {needed}, or {' or '.join(_RELEASED)} from {_RELEASE}"
    return checkpoints.locate(model, what, _RELEASED)


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of pretrained ones."""
    from sige.runs.models import checkpoints

    def trained():
        source = _source(model)
        return checkpoints.digest(diffusers_folder.weights_file(source) if source.is_dir() else source)

    return checkpoints.weights_digest(model, trained)


def build(model: dict) -> torch.nn.Module:
    """The network with random weights of the config's seed, or the pretrained ones of ``weights_path``.

    JobFailure(invalid) where those are of another network than ``model.config`` describes.
    """
    from diffusers import UNet2DModel

    source = _source(model) if model["weights"] == "pretrained" else None
    if source is not None and source.is_dir():
        module = diffusers_folder.load(UNet2DModel, model, "unet")
    else:
        torch.manual_seed(model["seed"])
        module = UNet2DModel(**model["config"])
    if source is not None and source.is_file():
        _load(module, source)
    return module.float().eval().requires_grad_(False)


def _load(module: torch.nn.Module, path: Path) -> None:
    from sige.runs.models import checkpoints

    state = {key.removeprefix("module."): value for key, value in checkpoints.load_state(path).items()}
    if "temb.dense.0.weight" in state:
        state = _as_linear(_unfused(state))
        levels = len(module.up_blocks)
        checkpoints.assign(module, state, lambda key: rename(key, levels))
    else:
        checkpoints.assign(module, state, lambda key: key)


def rename(key: str, levels: int) -> str:
    """diffusers' name of a parameter of DDPM's U-Net with so many levels; a name of no such parameter comes back as it is.

    DDPM counts its levels from the finest on both ways, diffusers in the order in which they run.
    """
    if found := re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)\.(weight|bias)", key):
        way, level, kind, number, layer, last = found.groups()
        place = f"{way}_blocks.{_level(way, level, levels)}.{'resnets' if kind == 'block' else 'attentions'}.{number}"
        return f"{place}.{(_BLOCK if kind == 'block' else _ATTENTION).get(layer, layer)}.{last}"
    if found := re.fullmatch(r"(down|up)\.(\d+)\.(?:down|up)sample\.conv\.(weight|bias)", key):
        way, level, last = found.groups()
        return f"{way}_blocks.{_level(way, level, levels)}.{way}samplers.0.conv.{last}"
    if found := re.fullmatch(r"mid\.(block|attn)_([12])\.(.+)\.(weight|bias)", key):
        kind, number, layer, last = found.groups()
        place = f"mid_block.{'resnets' if kind == 'block' else 'attentions'}.{int(number) - 1}"
        return f"{place}.{(_BLOCK if kind == 'block' else _ATTENTION).get(layer, layer)}.{last}"
    layer, _, last = key.rpartition(".")
    return f"{_TOP.get(layer, layer)}.{last}"


def _level(way: str, level: str, levels: int) -> int:
    return int(level) if way == "down" else levels - 1 - int(level)


def _unfused(state: dict) -> dict:
    """A state dict in which fused layers are separate; one that has none comes back equal."""
    made = {}
    for key, value in state.items():
        if ".qkv." in key:
            for name, part in zip("qkv", value.chunk(3)):
                made[key.replace(".qkv.", f".{name}.")] = part
        elif not key.startswith(_EVERY_PROJECTION):
            made[key] = value
    for last in ("weight", "bias"):
        if f"{_EVERY_PROJECTION}.{last}" in state:
            _share_out(made, state[f"{_EVERY_PROJECTION}.{last}"], last)
    return made


def _share_out(state: dict, rows: torch.Tensor, last: str) -> None:
    """Give each block its part of the fused projection: as many rows as its first convolution has, in the order in which blocks run."""
    pattern = r"(?:(down|up)\.(\d+)\.block\.(\d+)|mid\.block_([12]))\.conv1\.weight"
    places = []
    for key in state:
        if found := re.fullmatch(pattern, key):
            way, level, number, middle = found.groups()
            if middle:
                place = (1, 0, int(middle))
            else:
                place = (0, int(level), int(number)) if way == "down" else (2, -int(level), int(number))
            places.append((place, key))
    offset = 0
    for _, key in sorted(places):
        count = len(state[key])
        state[key.replace("conv1.weight", f"temb_proj.{last}")] = rows[offset : offset + count]
        offset += count
    if offset != len(rows):  # kept under its own name, so that the report names it
        state[f"{_EVERY_PROJECTION}.{last}"] = rows


def _as_linear(state: dict) -> dict:
    """A state dict whose 1x1 convolutions of attention are the linear layers that diffusers has."""
    return {
        key: value.flatten(1) if ".attn" in key and value.dim() == 4 and value.shape[2:].numel() == 1 else value
        for key, value in state.items()
    }


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
