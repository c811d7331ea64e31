"""Whole pipelines, for jobs that edit a whole picture: one of each kind, made when first asked for.

size       side of the picture; the small pipelines' autoencoder reduces it by 4
networks   by kind, the configuration of a full-size U-Net of this group: it is counted on meta tensors (hardware=meta)
"""

from sige.runs.errors import JobFailure
from sige.runs.models import text_to_image

PARTS = ("sige.runs.models.text_to_image", "sige.runs.models.small_tokenizer", "sige.runs.editing_bench")
PARTS += tuple(
    f"sige.runs.editing.{name}"
    for name in ("pictures", "meter", "task", "registry", "inversion", "attention", "counting", "fisedit", "diffedit")
)
PARTS += tuple(
    f"sige.runs.editing.{name}"
    for name in ("sdtp", "sdip", "sdedit", "prompt_to_prompt", "plug_and_play", "pix2pix_zero", "instruct_pix2pix")
)


def weights_digest(model: dict) -> str:
    """Seed of random weights; nothing else is offered."""
    if model["weights"] != "random":
        raise JobFailure("invalid", f"{model['name']} has random weights alone, not {model['weights']!r}.")
    return f"random-{model['seed']}"


class Pipelines(dict):
    """kind -> pipeline of one model on a device, each made when it is first looked up."""

    def __init__(self, model: dict, device: str):
        super().__init__()
        self.model, self.device = model, device

    def __missing__(self, kind):
        pipe = text_to_image.small_pipeline(self.model["seed"], self.model["input"]["height"], kind)
        self[kind] = pipe.to(self.device)
        return self[kind]

    def __contains__(self, kind):
        return kind in text_to_image.KINDS
