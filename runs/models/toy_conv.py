"""The toy of SIGE's notebook: one 3x3 convolution, 16 to 32 channels, at the picture's size."""

import torch

CHANGED = (0,)
CHANNELS = (16, 32)


def weights_digest(model: dict) -> str:
    """Seed of the random weights."""
    return f"random:{model['seed']}"


def build(model: dict) -> torch.nn.Module:
    """The convolution, with random weights of the config's seed."""
    torch.manual_seed(model["seed"])
    return torch.nn.Conv2d(*CHANNELS, 3, padding=1).eval().requires_grad_(False)


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
    """(1, 16, H, W): random mixtures of the picture's channels, so that it differs where the picture does."""
    mixture = torch.randn(CHANNELS[0], picture.shape[0], generator=torch.Generator().manual_seed(seed))
    return (torch.einsum("oc,chw->ohw", mixture, picture)[None],)


def forward(module: torch.nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """(1, 32, H, W)."""
    return module(sample)
