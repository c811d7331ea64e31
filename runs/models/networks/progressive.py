"""The U-Net of Progressive Distillation: a noised picture and its noise level in; a picture and its noise, both guessed, out.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022. Facts about the network, and the names
of its parts (``down.0.block.0.conv1``), were read from the release of its church weights.

It differs from DDPM's: the embedded noise level scales and shifts each block's second normalisation, maps are halved by average
pooling and doubled by repetition inside a residual block, and attention has several heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

_GROUPS = 32
_LIMIT = 20.0  # of the logarithm of the signal-to-noise ratio, either way
_STEPS = 1000  # what the time in [0, 1] is multiplied by before it is embedded


def time_of(logsnr: torch.Tensor) -> torch.Tensor:
    """The time in [0, 1] at which a cosine schedule has this log signal-to-noise ratio: 0 where all is signal."""
    return torch.atan(torch.exp(-0.5 * logsnr.clamp(-_LIMIT, _LIMIT))) * (2 / math.pi)


def embed(steps: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of steps (B,) at ``width // 2`` frequencies from 1 down to 1/10000: (B, width) float32."""
    half = width // 2
    falling = -math.log(10000) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=steps.device) * falling)
    angles = steps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


class Block(nn.Module):
    """Residual block: (B, C, H, W) and the embedding (B, E) -> (B, D, H, W), or the map halved or doubled.

    resample: "down", "up" or None. Both branches are resampled before their first convolution.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, resample: str | None = None):
        super().__init__()
        self.resample = resample
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def _resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.temb_proj(F.silu(embedding))[:, :, None, None].chunk(2, 1)
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        x = self._resampled(x)
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Self-attention of all positions of a map, its input added: (B, C, H, W) -> the same. C is whole heads of ``width``."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.width = width
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        heads = (batch, channels // self.width, self.width, height * width)
        query, key, value = (part.view(heads).transpose(2, 3) for part in self.qkv(self.norm(x)).chunk(3, 1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(2, 3).reshape(batch, channels, height, width))


class Level(nn.Module):
    """The blocks of one resolution, an attention behind each where the level has any, and the block that leads to the next."""

    def __init__(self, blocks: list[Block], attentions: list[Attention]):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attentions)

    def step(self, number: int, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Block ``number`` and its attention."""
        x = self.block[number](x, embedding)
        return self.attn[number](x) if len(self.attn) else x


class ProgressiveUNet(nn.Module):
    """The whole network: (B, in, H, W) and log signal-to-noise ratios (B,) -> (B, out, H, W): of six channels, three are the picture
    without noise and three the noise.

    channels: of the finest level.  multipliers: of ``channels``, level by level.  blocks: at each level going down; one more going up.
    side: H and W.  attention: the sides at which maps attend (the coarsest level's middle always does).  head: channels of one head.
    embedding: width of the embedded noise level.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        head: int,
        embedding: int,
        in_channels: int = 3,
        out_channels: int = 6,
    ):
        super().__init__()
        widths = [channels * number for number in multipliers]
        self.channels, self.blocks = channels, blocks
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(channels, embedding), nn.Linear(embedding, embedding)])
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        def level(number, before, resample):
            """``before``: the channels that enter each block. ``resample`` is None at the last level of its way."""
            width = widths[number]
            attends = side >> number in attention
            made = Level(
                [Block(entering, width, embedding) for entering in before],
                [Attention(width, head) for _ in before] if attends else [],
            )
            if resample:
                setattr(made, f"{resample}sample", Block(width, width, embedding, resample))
            return made

        self.down, last = nn.ModuleList(), len(widths) - 1
        for number, width in enumerate(widths):
            before = [widths[number - 1] if number else channels] + [width] * (blocks - 1)
            self.down.append(level(number, before, "down" if number < last else None))
        self.mid = nn.Module()
        self.mid.block_1 = Block(widths[-1], widths[-1], embedding)
        self.mid.attn_1 = Attention(widths[-1], head)
        self.mid.block_2 = Block(widths[-1], widths[-1], embedding)
        self.up = nn.ModuleList()
        for number, width in enumerate(widths):
            # From below and from the skips: this level's blocks, and last what came into the level going down.
            entering = [widths[min(number + 1, last)]] + [width] * blocks
            skips = [width] * blocks + [widths[number - 1] if number else channels]
            before = [one + other for one, other in zip(entering, skips, strict=True)]
            self.up.append(level(number, before, "up" if number else None))
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        first, second = self.temb.dense
        embedding = embed(time_of(logsnr.float()) * _STEPS, self.channels).to(first.weight.dtype)
        embedding = second(F.silu(first(embedding)))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            for number in range(self.blocks):
                x = level.step(number, x, embedding)
                skips.append(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x, embedding)
                skips.append(x)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x, embedding)), embedding)
        for level in reversed(self.up):
            for number in range(self.blocks + 1):
                x = level.step(number, torch.cat([x, skips.pop()], 1), embedding)
            if hasattr(level, "upsample"):
                x = level.upsample(x, embedding)
        return self.conv_out(F.silu(self.norm_out(x)))
