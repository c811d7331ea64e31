"""Progressive Distillation's church models: SDEdit's first step of an eight-step sampler.

The sampler has ``schedule.steps`` steps on the times 1/steps, 2/steps, ... 1 of a cosine schedule whose log signal-to-noise ratio runs
from 20 to -20; an edit starts at step ``schedule.start`` of them and goes down. The U-Net takes that ratio and gives six channels: the
picture and the noise it guesses.

Trained weights were released for 128x128 alone, as a state dict in the U-Net's own names.
"""

import math
from pathlib import Path

import torch

from sige.runs.errors import JobFailure
from sige.runs.models.networks.progressive import ProgressiveUNet

CHANGED = (0,)
_RELEASE = "https://www.cs.cmu.edu/~sige/resources/models/diffusion/"
_EXTREME = 20.0  # the log signal-to-noise ratio at time 0, and less it at time 1


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of trained ones. JobFailure(missing_weights) where there is none."""
    from sige.runs.models import checkpoints

    return checkpoints.weights_digest(model, lambda: checkpoints.digest(_file(model)))


def _file(model: dict) -> Path:
    """The file of trained weights; JobFailure(missing_weights) says what to fetch and where to put it."""
    from sige.runs.models import checkpoints

    return checkpoints.released(model, _RELEASE, "U-Net")


def build(model: dict) -> torch.nn.Module:
    """The U-Net with random weights of the config's seed, or the trained ones. Without data on the meta device."""
    config, size = model["config"], model["input"]
    _check(model)
    torch.manual_seed(model["seed"])
    module = ProgressiveUNet(
        side=size["height"],
        channels=config["channels"],
        multipliers=tuple(config["multipliers"]),
        blocks=config["blocks"],
        attention=tuple(config["attention"]),
        head=config["head"],
        embedding=config["embedding"],
        in_channels=size["channels"],
        out_channels=2 * size["channels"],
    )
    if model["weights"] == "pretrained":
        from sige.runs.models import checkpoints

        state = checkpoints.load_state(_file(model))
        checkpoints.assign(module, state, lambda key: key.removeprefix("module."))
    return module.float().eval().requires_grad_(False)


def _check(model: dict) -> None:
    """JobFailure(invalid) for a config that no such U-Net has."""
    config, size = model["config"], model["input"]
    if size["height"] != size["width"]:
        raise JobFailure(
            "invalid", f"{model['name']} takes square pictures, not {size['height']}x{size['width']} ones."
        )
    reduction = _reduction(model)
    if size["height"] % reduction:
        raise JobFailure(
            "invalid",
            f"{model['name']} has {len(config['multipliers'])} levels: its picture's side must be a multiple of {reduction}, "
            f"not {size['height']}.",
        )
    for number, multiplier in enumerate(config["multipliers"]):
        width, side = config["channels"] * multiplier, size["height"] >> number
        attends = side in config["attention"] or side == size["height"] // reduction
        if width % 32 or attends and width % config["head"]:
            raise JobFailure(
                "invalid",
                f"{model['name']} has {width} channels at {side}x{side}, which must be a multiple of 32 groups"
                + (f" and of a head's {config['head']} channels." if attends else "."),
            )


def _reduction(model: dict) -> int:
    """Pixels along a side of one position of the coarsest level."""
    return 2 ** (len(model["config"]["multipliers"]) - 1)


def logsnr_at(time: float) -> float:
    """Log signal-to-noise ratio of the cosine schedule at a time from 0 (20) to 1 (-20): -2 log tan(a t + b)."""
    low = math.atan(math.exp(-0.5 * _EXTREME))
    high = math.atan(math.exp(0.5 * _EXTREME))
    return -2 * math.log(math.tan((high - low) * time + low))


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the sampler's first step takes of a (C, H, W) picture: it, noised, (1, C, H, W), and the log signal-to-noise ratio l (1,).

    sqrt(sigmoid(l)) x + sqrt(sigmoid(-l)) e, with the same noise e for the same seed: SDEdit gives it to both sides of an edit.
    """
    size = model["input"]
    if tuple(picture.shape) != (size["channels"], size["height"], size["width"]):
        raise JobFailure(
            "invalid",
            f"{model['name']} takes pictures of {size['channels']}x{size['height']}x{size['width']}, "
            f"not {'x'.join(map(str, picture.shape))}.",
        )
    schedule = model["schedule"]
    if not 1 <= schedule["start"] <= schedule["steps"]:
        raise JobFailure(
            "invalid",
            f"{model['name']} has schedule.start={schedule['start']}; choose one of the steps 1 to {schedule['steps']}.",
        )
    logsnr = logsnr_at(schedule["start"] / schedule["steps"])
    signal, noise = (1 / (1 + math.exp(-side)) for side in (logsnr, -logsnr))
    grain = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return (signal**0.5 * picture + noise**0.5 * grain)[None], torch.tensor([logsnr])


def forward(module: torch.nn.Module, sample: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
    """Picture and noise as guessed, (1, 2C, H, W)."""
    return module(sample, logsnr)
