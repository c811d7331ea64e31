"""What is edited, and what came of it."""

import dataclasses
from typing import Any, NamedTuple

import torch

from sige.runs.errors import UserError

ORIGINAL = "original"  # the part of a run that makes the picture to edit


class Call(NamedTuple):
    """The map of one U-Net call: rows of its batch, height and width of the latents."""

    batch: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class EditTask:
    """A picture and the change that is wanted of it.

    prompt, new_prompt: what the picture shows, and what it shall show.   seed: of the start noise and every other random number.
    steps: of the sampler.   guidance_scale: how much the prompt counts.   height, width: of the picture in pixels.
    mask: bool (h, w) at the latents' resolution, True where the picture may change; for methods that are given one.
    image: the original (3, H, W) in [0, 1]; None: made from ``prompt`` and ``seed`` by the method's pipeline.
    strength: share of the steps that are run, for methods that start from a noised picture; None: the method's own.
    options: settings of the method, by name.   UserError for values that no method can use.
    """

    prompt: str
    new_prompt: str
    seed: int = 0
    steps: int = 50
    guidance_scale: float = 7.5
    height: int = 768
    width: int = 768
    mask: torch.Tensor | None = None
    image: torch.Tensor | None = None
    strength: float | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not isinstance(self.new_prompt, str):
            raise UserError(f"an edit's prompts are {self.prompt!r} and {self.new_prompt!r}; give two strings.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"an edit of {self.steps!r} steps; give a whole number from 1 on.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UserError(f"an edit of strength {self.strength!r}; give a share of the steps above 0 and at most 1.")
        if self.image is not None and tuple(self.image.shape) != (3, self.height, self.width):
            raise UserError(
                f"the picture to edit has shape {tuple(self.image.shape)}; give (3, {self.height}, {self.width})."
            )
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.dim() != 2):
            raise UserError(
                f"the edit's mask is {self.mask.dtype} of shape {tuple(self.mask.shape)}; give bool (h, w) at the latents' resolution."
            )


@dataclasses.dataclass
class EditResult:
    """An edited picture and what it took.

    original, image: (3, H, W) in [0, 1].   mask: bool (h, w) of latents that were free to change, None where all were.
    calls_by_part: U-Net calls of each part of the run, in order.   seconds: of each part.
    latents: (1, C, h, w) that the edited picture was decoded from, None where the method does not show them.
    details: a method's own account, such as that of FISEdit's session; None for others.
    """

    original: torch.Tensor
    image: torch.Tensor
    mask: torch.Tensor | None
    calls_by_part: dict[str, list[Call]]
    seconds: dict[str, float]
    latents: torch.Tensor | None = None
    details: Any = None

    @property
    def calls(self) -> list[Call]:
        """U-Net calls of the edit: those of every part but the making of the original."""
        return [call for part, calls in self.calls_by_part.items() if part != ORIGINAL for call in calls]
