"""Attention layers of a U-Net whose queries, keys or maps a method looks at or changes, through diffusers' processors."""

import contextlib

import torch
import torch.nn.functional as F

from sige.runs.errors import UserError


class Processor:
    """Computes what diffusers' own processor computes. Subclasses override what they need.

    Queries, keys and values are (B, heads, positions, width), maps (B, heads, positions, tokens) in float32.
    """

    def projected(self, query, key):
        """Queries and keys to go on with."""
        return query, key

    def needs_map(self, query) -> bool:
        """Whether this call needs the map itself; otherwise the fused operator runs."""
        return False

    def changed(self, shares):
        """The map to go on with."""
        return shares

    def signature(self):
        """What the next call's cost depends on beside its shapes, for counting; None where each call must be run."""
        return ()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        """Output of the layer ``attn`` for hidden states (B, positions, channels)."""
        if attention_mask is not None:
            raise UserError("this method knows unmasked attention alone; the pipeline's text encoder masks its tokens.")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        query, key = self.projected(query, key)
        if self.needs_map(query):
            scores = query.float() @ key.float().transpose(2, 3) * attn.scale
            mixed = self.changed(scores.softmax(-1)).to(value.dtype) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


@contextlib.contextmanager
def installed(unet, make):
    """While the block runs, each attention layer for which ``make(name, layer)`` gives a processor has that one.

    name: the layer's path in the U-Net, such as ``up_blocks.1.attentions.0.transformer_blocks.0.attn1``; attn1 are those of the
    picture to itself, attn2 those to the text.
    """
    before = dict(unet.attn_processors)
    chosen = {}
    for path, processor in before.items():
        name = path.removesuffix(".processor")
        chosen[path] = make(name, unet.get_submodule(name)) or processor
    unet.set_attn_processor(chosen)
    try:
        yield [processor for path, processor in chosen.items() if processor is not before[path]]
    finally:
        unet.set_attn_processor(before)


@contextlib.contextmanager
def counted_calls(unet, hear):
    """While the block runs, ``hear(n)`` is told before the U-Net's n-th call, from 0 on."""
    heard = [0]

    def call(*_):
        hear(heard[0])
        heard[0] += 1

    hook = unet.register_forward_pre_hook(call)
    try:
        yield
    finally:
        hook.remove()


def is_self_attention(name: str) -> bool:
    """Whether a layer attends from the picture to itself."""
    return name.endswith("attn1")


def check_share(value, name: str, method: str) -> float:
    """A share of the steps, 0 to 1; UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{method} has {name}={value!r}; give a share of the steps from 0 to 1.")
    return float(value)


def scores_apart(shares: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How far two maps lie apart: squared differences, summed over positions and tokens, averaged over batch and heads."""
    return (shares - reference.to(shares.device)).square().sum((-2, -1)).mean()
