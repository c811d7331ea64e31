"""The model as it is, its attention unfused: scores, softmax and values one after the other, as before fused kernels.

It is the baseline under FISEdit's Table 1; what a fused kernel brings on top ("Op" there) is the difference to the plain dense method.
"""

from sige.runs.errors import UserError
from sige.runs.methods import dense


def check(options: dict, model: dict | None = None) -> None:
    """As for the dense method; the model must be a diffusers one, whose attention can be exchanged."""
    from sige.runs.models import stable_diffusion

    dense.check(options, model)
    if model is not None and model.get("loader") != stable_diffusion.__name__:
        raise UserError(
            f"attention is exchanged in the U-Net of Stable Diffusion alone, not in {model.get('name')}; choose method=dense."
        )


def build(name: str, options: dict, zoo, hardware: dict) -> dense.Dense:
    """A dense runner on a copy of the network with diffusers' unfused attention."""
    from diffusers.models.attention_processor import AttnProcessor

    runner = dense.build(name, options, zoo, hardware)
    runner.module.set_attn_processor(AttnProcessor())
    return runner
