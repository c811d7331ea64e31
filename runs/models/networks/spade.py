"""The SPADE generator (GauGAN) and the mobile one of GAN Compression: a picture painted from a label map.

Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019; Li et al., "GAN Compression", CVPR 2020.
Facts about them were read from the releases; sub-modules bear the names that the released state dicts use.

The input is a map of labels (B, L, H, W): one channel a class, one of instance edges. Shrunk to H/64 x W/64 it enters a 3x3
convolution; seven residual blocks follow, with nearest up-sampling by two before each but the first. Every normalisation in a
block is scaled and shifted position by position, by convolutions of the label map at the block's resolution. The convolutions
of the labels that feed one block's normalisations are computed as one, and so are the scale and shift of a plain generator.
"""

import torch
import torch.nn.functional as F
from torch import nn

REDUCTION = 64  # pixels a side of a position of the first block
_SLOPE = 0.2
# Name, width in units of the block's own number, and whether a 1x1 convolution changes the width of the shortcut.
_BLOCKS = (
    ("head_0", 16, False),
    ("G_middle_0", 16, False),
    ("G_middle_1", 16, False),
    ("up_0", 8, True),
    ("up_1", 4, True),
    ("up_2", 2, True),
    ("up_3", 1, True),
)


class SeparableConv(nn.Module):
    """3x3 convolution of each channel, instance norm, 1x1 convolution: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.InstanceNorm2d(channels),
            nn.Conv2d(channels, out_channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Spade(nn.Module):
    """Batch norm without weights; scale and shift are made of ``hidden`` (B, hidden, H, W), the block's view of the labels."""

    def __init__(self, channels: int, hidden: int, separable: bool):
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.separable = separable
        if separable:
            self.mlp_gamma = SeparableConv(hidden, channels)
            self.mlp_beta = SeparableConv(hidden, channels)
        else:
            self.mlp_gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        if self.separable:
            gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        else:
            gamma, beta = self.mlp_gamma_beta(hidden).chunk(2, dim=1)
        return self.param_free_norm(x) * (1 + gamma) + beta


class SpadeBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each behind a :class:`Spade`: ``channels`` -> ``width`` -> ``width``, or back to
    ``channels`` where the shortcut is the identity."""

    def __init__(self, channels: int, width: int, hidden: int, labels: int, shortcut: bool, separable: bool):
        super().__init__()
        self.hidden, self.out_channels = hidden, width if shortcut else channels
        self.mlp_shared = nn.Sequential(nn.Conv2d(labels, hidden * (3 if shortcut else 2), 3, padding=1), nn.ReLU())
        self.norm_0 = Spade(channels, hidden, separable)
        self.conv_0 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm_1 = Spade(width, hidden, separable)
        self.conv_1 = nn.Conv2d(width, self.out_channels, 3, padding=1)
        self.norm_s = Spade(channels, hidden, separable) if shortcut else None
        self.conv_s = nn.Conv2d(channels, width, 1, bias=False) if shortcut else None

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = F.interpolate(labels, size=x.shape[2:], mode="nearest")
        hidden = self.mlp_shared(labels).split(self.hidden, dim=1)
        path = self.conv_0(F.leaky_relu(self.norm_0(x, hidden[0]), _SLOPE))
        path = self.conv_1(F.leaky_relu(self.norm_1(path, hidden[1]), _SLOPE))
        return path + (x if self.conv_s is None else self.conv_s(self.norm_s(x, hidden[2])))


class SpadeGenerator(nn.Module):
    """The generator: labels (B, L, H, W) -> picture (B, 3, H, W) in [-1, 1]; H and W are multiples of 64.

    widths: eight numbers, of the first convolution and of each block, in units of 16, 16, 16, 16, 8, 4, 2 and 1 channels; all the same
        for GauGAN (64: its ngf). A block's labels pass through twice its number of hidden channels.
    separable: scale and shift by :class:`SeparableConv`, as in GAN Compression, not by 3x3 convolutions.
    """

    def __init__(self, widths: tuple[int, ...], labels: int = 36, separable: bool = False):
        super().__init__()
        if len(widths) != 1 + len(_BLOCKS) or any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"a SPADE generator has 8 widths, whole numbers above 0, not {list(widths)}.")
        channels = 16 * widths[0]
        self.fc = nn.Conv2d(labels, channels, 3, padding=1)
        for (name, unit, shortcut), width in zip(_BLOCKS, widths[1:]):
            block = SpadeBlock(channels, unit * width, 2 * width, labels, shortcut, separable)
            self.add_module(name, block)
            channels = block.out_channels
        self.conv_img = nn.Conv2d(channels, 3, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        height, width = labels.shape[2:]
        if height % REDUCTION or width % REDUCTION:
            raise ValueError(f"a SPADE generator takes sides that are multiples of {REDUCTION}, not {height}x{width}.")
        x = self.fc(F.interpolate(labels, size=(height // REDUCTION, width // REDUCTION), mode="nearest"))
        x = self.head_0(x, labels)
        for name, _, _ in _BLOCKS[1:]:
            x = getattr(self, name)(self.up(x), labels)
        return torch.tanh(self.conv_img(F.leaky_relu(x, _SLOPE)))
