"""What an edit is: an original, an edited version of it, and the mask of where the two may differ."""

from dataclasses import dataclass

import torch


class UnknownEdit(ValueError):
    """The name of an edit that no data set has; the message lists what exists."""


class MissingSample(FileNotFoundError):
    """A sample edit whose files are not on this machine; the message says where they were looked for."""


@dataclass(frozen=True)
class Edit:
    """One picture and its edited version.

    original: (C, H, W) float32, in [-1, 1].
    edited:   (C, H, W) float32, equal to ``original`` outside the mask (a sample may differ there by less than the
              threshold its mask was made with; a brightened edit leaves [-1, 1]).
    mask:     (H, W) bool, final at full resolution: True where the two may differ.
    source:   "sample" (a file) or "generated".
    dataset:  the data set that made it.
    prompt:   whether the text changed too, where a model takes one: the mask is where the new text made a difference.
    """

    name: str
    original: torch.Tensor
    edited: torch.Tensor
    mask: torch.Tensor
    source: str
    dataset: str
    prompt: bool = False

    @property
    def area(self) -> float:
        """Fraction of the picture under the mask, 0..1."""
        return self.mask.float().mean().item()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.mask.shape)
