"""diffusers' own image transformers, one denoising step each: PixArt-alpha, Stable Diffusion 3, Flux and Sana.

The config names the class as ``architecture`` and its arguments as ``config``. Sizes of what goes in stand beside them:
``latent.channels`` and ``latent.reduction`` (pixels along a side of a latent position, 8 unless given); ``text.tokens``,
``text.width`` and ``text.pooled`` (0: no pooled embedding); ``timestep``, of 1000; and ``guidance``: ``classifier_free`` runs a batch
of two, without and with the text, a number is what a distilled model is told.

Latents are stand-ins, made from the picture without an encoder and noised: see :mod:`sige.runs.models.latents`.
"""

import hashlib
import json
from pathlib import Path

import torch

from sige.runs.errors import JobFailure
from sige.runs.models.diffusers_folder import check_config
from sige.runs.models.latents import REDUCTION, stand_in

CHANGED = (0,)
_FILES = "diffusion_pytorch_model*.safetensors"
# Latent positions along a side of one image token.
_PATCH = {
    "PixArtTransformer2DModel": 2,
    "SD3Transformer2DModel": 2,
    "FluxTransformer2DModel": 2,
    "SanaTransformer2DModel": 1,
}


def _folder(model: dict) -> Path:
    """Local folder of pretrained weights; JobFailure(missing_weights) says what to fetch and where to put it."""
    from sige.runs.models import checkpoints

    folder = checkpoints.hub_folder(
        model, "a diffusers folder with config.json and the transformer's safetensors files"
    )
    inner = folder / "transformer"
    folder = inner if inner.is_dir() else folder
    if not (folder / "config.json").is_file() or not list(folder.glob(_FILES)):
        raise JobFailure(
            "missing_weights", f"{model['name']}: {folder} must hold config.json and {_FILES}, as diffusers saves them."
        )
    return folder


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the files of pretrained ones (of names and sizes where they come in pieces)."""
    from sige.runs.models import checkpoints

    return checkpoints.weights_digest(model, lambda: _digest(model))


def _digest(model: dict) -> str:
    from sige.runs.models import checkpoints

    files = sorted(_folder(model).glob(_FILES))
    if len(files) == 1:
        return checkpoints.digest(files[0])
    pieces = [[file.name, file.resolve().name, file.stat().st_size] for file in files]
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()[:12]


def _class(model: dict):
    import diffusers

    if model["architecture"] not in _PATCH:
        raise JobFailure(
            "invalid",
            f"unknown architecture {model['architecture']!r} of {model['name']}; choose {', '.join(_PATCH)}.",
        )
    return getattr(diffusers, model["architecture"])


def build(model: dict) -> torch.nn.Module:
    """The transformer with random weights of the config's seed, or the pretrained ones. Without data on the meta device."""
    kind = _class(model)
    if model["weights"] == "pretrained":
        folder = _folder(model)
        check_config(model, folder)
        module = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    else:
        torch.manual_seed(model["seed"])
        module = kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in model["config"].items()})
    return module.eval().requires_grad_(False)


def _noised(model: dict, clean: torch.Tensor, seed: int) -> torch.Tensor:
    """The latent at the config's time step: rectified flow, or for PixArt the variance-preserving process it was trained with."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    if model["architecture"] != "PixArtTransformer2DModel":
        share = model["timestep"] / 1000
        return (1 - share) * clean + share * noise
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[model["timestep"]].item()
    return kept**0.5 * clean + (1 - kept) ** 0.5 * noise


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Arguments of :func:`forward` for a picture (3, H, W): the noised latent (B, C, h, w), text embeddings (B, n, width), the
    text's mask or pooled embedding (B, n or width), the time step (B,) and, for a distilled model, its guidance (B,).

    Text embeddings are seeded normal; noise and text are the same for the same seed.
    """
    reduction = model["latent"].get("reduction", REDUCTION)
    side = reduction * _PATCH[model["architecture"]]
    if picture.shape[1] % side or picture.shape[2] % side:
        raise JobFailure(
            "invalid",
            f"{model['name']} cuts a picture into tokens of {side}x{side} pixels: {picture.shape[1]}x{picture.shape[2]} does not fit.",
        )
    text, guidance = model["text"], model.get("guidance")
    batch = 2 if guidance == "classifier_free" else 1
    generator = torch.Generator().manual_seed(seed + 1)
    clean = stand_in(picture, model["latent"]["channels"], reduction)
    sample = _noised(model, clean, seed).expand(batch, -1, -1, -1).contiguous()
    embeddings = torch.randn(batch, text["tokens"], text["width"], generator=generator)
    second = (
        torch.randn(batch, text["pooled"], generator=generator) if text["pooled"] else torch.ones(batch, text["tokens"])
    )
    times = torch.full((batch,), float(model["timestep"]))
    distilled = () if batch == 2 or guidance is None else (torch.full((batch,), float(guidance)),)
    return sample, embeddings, second, times, *distilled


def forward(module: torch.nn.Module, sample: torch.Tensor, text, second, times, guidance=None) -> torch.Tensor:
    """What the transformer predicts of the latent, (B, C, h, w) with the channels that it has."""
    kind = type(module).__name__
    if kind == "FluxTransformer2DModel":
        return _flux(module, sample, text, second, times, guidance)
    if kind == "SD3Transformer2DModel":
        return module(sample, encoder_hidden_states=text, pooled_projections=second, timestep=times).sample
    if kind == "SanaTransformer2DModel":
        return module(sample, encoder_hidden_states=text, encoder_attention_mask=second, timestep=times).sample
    extra = {"resolution": None, "aspect_ratio": None}
    if module.use_additional_conditions:
        sides = [REDUCTION * side for side in sample.shape[2:]]
        extra = {
            "resolution": times.new_tensor(sides).expand(len(sample), -1),
            "aspect_ratio": times.new_tensor([sides[0] / sides[1]]).expand(len(sample), -1),
        }
    output = module(
        sample, encoder_hidden_states=text, encoder_attention_mask=second, timestep=times, added_cond_kwargs=extra
    )
    return output.sample


def _flux(module, sample, text, pooled, times, guidance):
    """Flux takes its latent packed into tokens, 2x2 positions each, and the place of each token beside them."""
    (batch, channels, height, width), patch = sample.shape, _PATCH["FluxTransformer2DModel"]
    height, width = height // patch, width // patch
    tokens = sample.view(batch, channels, height, patch, width, patch).permute(0, 2, 4, 1, 3, 5)
    tokens = tokens.reshape(batch, height * width, -1)
    sides = [torch.arange(side, device=sample.device, dtype=torch.float32) for side in (1, height, width)]
    places = torch.cartesian_prod(*sides)  # (H*W, 3): 0, row, column
    output = module(
        tokens,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=times / 1000,
        img_ids=places,
        txt_ids=places.new_zeros(text.shape[1], 3),
        guidance=guidance,
    ).sample
    output = output.view(batch, height, width, -1, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return output.reshape(batch, -1, patch * height, patch * width)
