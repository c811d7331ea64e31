"""The option ``attention`` of a method: how a diffusers U-Net's attention is carried out.

``unfused``: scores, softmax and values one after the other, as before fused kernels, and as code that looks at the scores still does.
Dense it is the baseline under FISEdit's Table 1; what a fused kernel brings ("Op" there) is the difference to the plain dense method.
"""

from sige.runs.errors import UserError


def check(options: dict, model: dict | None) -> None:
    """The option must be known, and the model a diffusers one, whose attention can be exchanged."""
    from sige.runs.models import stable_diffusion

    asked = options.get("attention")
    if asked not in (None, "unfused"):
        raise UserError(f"unknown attention {asked!r} of a method; choose unfused, or leave it out.")
    if asked and model is not None and model.get("loader") != stable_diffusion.__name__:
        raise UserError(
            f"attention is exchanged in the U-Net of Stable Diffusion alone, not in {model.get('name')}; leave attention=unfused out."
        )


def exchange(module, options: dict) -> None:
    """Give a network the attention that the method asks for."""
    if options.get("attention") == "unfused":
        from diffusers.models.attention_processor import AttnProcessor

        module.set_attn_processor(AttnProcessor())
