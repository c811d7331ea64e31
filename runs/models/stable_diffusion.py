"""diffusers' own UNet2DConditionModel, one denoising step: every release of Stable Diffusion, in-painting, InstructPix2Pix, XL, LCM.

What goes in beside the network's own ``config``:

    timestep, betas    the step, and the schedule that says how much noise it has
    branches           one row of the batch each: ``plain`` and ``text`` are the two halves of classifier-free guidance; ``picture``
                       and ``text+picture`` also see the picture that InstructPix2Pix is conditioned on
    text               {tokens, width}: of the text encoder's output
    conditioning       channels behind the noised latents: null; ``hole`` (in-painting: a mask channel, and latents of the picture
                       without what is in the hole); ``picture`` (InstructPix2Pix: latents of the picture, zeros for ``plain``)
    hole               top, left, bottom, right of the hole as shares of the picture's sides
    guidance_scale     what a network with a ``timestep_cond`` input (LCM) is told

Latents and text are stand-ins (``latents.py``; seeded normal numbers) whatever the weights: MACs, time, bytes and the error against the
dense model on the same input need no others. Image quality does, and is not measured on one step.
"""

import torch

from sige.runs.errors import JobFailure
from sige.runs.models import diffusers_folder, latents

CHANGED = (0,)
BRANCHES = ("plain", "text", "picture", "text+picture")
CONDITIONINGS = (None, "hole", "picture")


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of pretrained ones."""
    return diffusers_folder.digest(model, "unet")


def build(model: dict) -> torch.nn.Module:
    """The U-Net with random weights of the config's seed, or the pretrained ones. Without data on the meta device."""
    from diffusers import UNet2DConditionModel

    _check(model)
    if model["weights"] == "pretrained":
        module = diffusers_folder.load(UNet2DConditionModel, model, "unet")
    else:
        torch.manual_seed(model["seed"])
        module = UNet2DConditionModel(**model["config"])
    return module.float().eval().requires_grad_(False)


def _check(model: dict) -> None:
    """JobFailure(invalid) for inputs that the network cannot take."""
    name, config, conditioning = model["name"], model["config"], model.get("conditioning")
    for branch in model["branches"]:
        if branch not in BRANCHES:
            raise JobFailure("invalid", f"{name} has an unknown branch {branch!r}; choose of {', '.join(BRANCHES)}.")
    if conditioning not in CONDITIONINGS:
        raise JobFailure("invalid", f"{name} has unknown conditioning {conditioning!r}; choose null, hole or picture.")
    channels = {None: 4, "hole": 9, "picture": 8}[conditioning]
    if config["in_channels"] != channels:
        raise JobFailure(
            "invalid",
            f"{name} has in_channels={config['in_channels']}, with conditioning={conditioning or 'null'} it must be {channels}.",
        )
    if config["cross_attention_dim"] != model["text"]["width"]:
        raise JobFailure(
            "invalid",
            f"{name} has text.width={model['text']['width']}, its config's cross_attention_dim={config['cross_attention_dim']}: "
            "they must agree.",
        )


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Arguments of :func:`forward` for a picture (3, H, W), with a batch of one row for each of the B branches.

    sample (B, 4 and conditioning channels, H/8, W/8), time step (1,), text (B, tokens, width); with added conditions also pooled
    text (B, n) and sizes (B, 6); with a ``timestep_cond`` input its embedding (B, n). Noise and text are the same for a seed.
    """
    _check(model)
    branches, text = model["branches"], model["text"]
    sample = torch.cat([_channels(model, picture, seed)] * len(branches))
    if model.get("conditioning") == "picture":
        for row, branch in enumerate(branches):
            sample[row, 4:] *= "picture" in branch
    generator = torch.Generator().manual_seed(seed + 1)
    # A prompt and the empty prompt: branches without text share one embedding.
    embeddings = torch.randn(2, text["tokens"], text["width"], generator=generator)
    rows = torch.tensor(["text" in branch for branch in branches], dtype=torch.long)
    step = torch.tensor([model["timestep"]])
    return sample, step, embeddings[rows], *_added(model, picture, rows, generator)


def with_new_text(model: dict, inputs: tuple[torch.Tensor, ...], seed: int) -> tuple[tuple, tuple[str, ...]]:
    """What :func:`inputs` returned with another prompt in the branches that have one, and the names under which the network knows
    what changed: an edit of the prompt declares them."""
    sample, step, text, *added = inputs
    other = torch.randn(text.shape[1:], generator=torch.Generator().manual_seed(seed + 2)).to(text)
    has_text = torch.tensor(["text" in branch for branch in model["branches"]], device=text.device)
    return (sample, step, torch.where(has_text[:, None, None], other, text), *added), ("encoder_hidden_states",)


def _channels(model: dict, picture: torch.Tensor, seed: int) -> torch.Tensor:
    """The input map of one branch that sees everything, (1, C, H/8, W/8)."""
    clean = latents.stand_in(picture)
    sample = latents.noised(clean, model["betas"], model["timestep"], seed)
    if model.get("conditioning") == "picture":
        return torch.cat([sample, clean], 1)
    if model.get("conditioning") == "hole":
        hole = _hole(model, picture)
        # The mask comes to the latents' resolution as in diffusers: every eighth pixel of it.
        coarse = hole[None, None, :: latents.REDUCTION, :: latents.REDUCTION].float()
        return torch.cat([sample, coarse, latents.stand_in(picture * ~hole)], 1)
    return sample


def _hole(model: dict, picture: torch.Tensor) -> torch.Tensor:
    """Bool (H, W): what an in-painting model is to fill."""
    top, left, bottom, right = model["hole"]
    height, width = picture.shape[1:]
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return hole


def _added(model: dict, picture: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> tuple:
    """Inputs that only some networks have: those of XL, or the guidance that a distilled one is told."""
    config = model["config"]
    if config.get("addition_embed_type") == "text_time":
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        pooled = torch.randn(2, width, generator=generator)
        height, side = picture.shape[1:]
        sizes = torch.tensor([[height, side, 0, 0, height, side]], dtype=torch.float32)
        return pooled[rows], sizes.expand(len(rows), -1).contiguous()  # true size, crop's corner, wanted size
    if config.get("time_cond_proj_dim"):
        scale = torch.tensor([float(model["guidance_scale"])])
        return (guidance_embedding(scale, config["time_cond_proj_dim"]).expand(len(rows), -1).contiguous(),)
    return ()


def guidance_embedding(scale: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids (n, width) of guidance scales (n,), as latent consistency models are told them: of 1000 (w - 1)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = 1000 * (scale[:, None] - 1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def forward(module: torch.nn.Module, sample: torch.Tensor, timestep, text, *added) -> torch.Tensor:
    """What the U-Net predicts, noise or velocity, (B, 4, H/8, W/8)."""
    if len(added) == 2:
        conditions = {"text_embeds": added[0], "time_ids": added[1]}
        return module(sample, timestep, encoder_hidden_states=text, added_cond_kwargs=conditions).sample
    told = added[0] if added else None
    return module(sample, timestep, encoder_hidden_states=text, timestep_cond=told).sample
