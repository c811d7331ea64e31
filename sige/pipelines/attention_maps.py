"""Cross-attention layers, and arithmetic on their maps: which columns of a map stay when a prompt changes."""

import torch

from sige import masks
from sige.active_tensor import ActiveTensor
from sige.errors import ModelError, PromptError


class Carry:
    """A change of prompts as arithmetic on maps: columns of unchanged tokens from the old map, the others from the new one."""

    def __init__(self, change, swapped):
        exchanged = change.swapped() if swapped else {}
        sharing = [old for olds in exchanged.values() for old in olds]
        self.length = len(change.mapping)
        self.matrix = torch.zeros(self.length, self.length)
        self.own = torch.ones(self.length)
        for new, old in enumerate(change.mapping):
            if old is not None:
                self.own[new], self.matrix[old, new] = 0, 1
        for new, olds in exchanged.items():
            self.own[new] = 0
            for old in olds:  # several new tokens that stand for one old token share what it held
                self.matrix[old, new] = 1 / sharing.count(old)

    def __call__(self, shares, base):
        """New map from the new prompt's ``shares`` and the old prompt's ``base``, both (heads, positions, tokens)."""
        check_length(self.length, shares.shape[-1])
        check_length(self.length, base.shape[-1])
        return base @ self.matrix.to(shares.device) + shares * self.own.to(shares.device)


def put_back_outside(maps, base, carry, mask):
    """Write the old prompt's maps over ``maps`` where an edit left the picture alone.

    maps, base: of the new prompt and of the old one, (heads, positions, tokens) of one picture.   carry: the :class:`Carry` between
    the prompts.   mask: bool (h, w), True where the picture was edited, at a resolution that the layer halves any number of times,
    rounding up. ModelError for a layer of other positions.
    """
    height, width = mask.shape
    while height * width > maps.shape[1]:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != maps.shape[1]:
        raise ModelError(
            f"a layer has {maps.shape[1]} positions, which the latents' {tuple(mask.shape)} halved again and again do not give: use "
            "attention control with U-Nets that halve their maps"
        )
    places = (~masks.reduce_max(mask[None], height, width)).flatten().nonzero()[:, 0].to(maps.device)
    maps[:, places] = carry(maps[:, places].float(), base.to(maps.device)[:, places].float()).to(maps.dtype)


class Rows:
    """Queries of a call as rows (n, channels), plain or active, and which of them belong to which place in the batch."""

    def __init__(self, x):
        self._active = x.active if isinstance(x, ActiveTensor) else None
        if self._active is not None:
            self.rows = x.rows.flatten(1)
            self.batch, self.positions = self._active.batch, self._active.height * self._active.width
        else:
            self.rows = x.flatten(0, 1)
            self.batch, self.positions = x.shape[:2]

    @property
    def whole(self):
        return self._active is None or self._active.full

    def segment(self, place):
        if self._active is not None:
            return self._active.segments[place]
        return place * self.positions, (place + 1) * self.positions

    def of(self, place):
        start, stop = self.segment(place)
        return self.rows[start:stop]

    def places(self, place):
        """Positions within the picture of its rows, None where all are there."""
        if self.whole:
            return None
        start, stop = self.segment(place)
        return self._active.positions[start:stop] - place * self.positions


def like(x, rows):
    """``rows`` in the form that ``x`` has, plain or active."""
    return x.with_rows(rows.view_as(x.rows)) if isinstance(x, ActiveTensor) else rows.view(x.shape)


def by_head(rows, heads):
    """Rows (n, heads*width) as (heads, n, width)."""
    return rows.unflatten(-1, (heads, -1)).transpose(0, 1)


def check_length(length, tokens):
    if length != tokens:
        raise PromptError(
            f"the prompts were compared over {length} token positions, the U-Net reads {tokens}: compare(..., length={tokens})"
        )


def cross_attentions(unet):
    """The layers that attend to text, by name. ModelError where there are none, or of a kind that control does not know."""
    layers = {}
    for name, module in unet.named_modules():
        if not getattr(module, "is_cross_attention", False) or not hasattr(module, "to_q"):
            continue
        if getattr(module, "fused_projections", False):
            raise ModelError(
                f"{name} has fused projections: call unet.unfuse_qkv_projections() before attention control"
            )
        if (
            getattr(module, "added_kv_proj_dim", None) is not None
            or module.norm_q is not None
            or module.norm_k is not None
        ):
            raise ModelError(f"{name} adds or normalises keys: attention control knows plain cross-attention only")
        if module.inner_dim != module.inner_kv_dim:
            raise ModelError(f"{name} shares keys between heads: attention control knows plain cross-attention only")
        layers[name] = module
    if not layers:
        raise ModelError(f"{type(unet).__name__} has no cross-attention: a model without a prompt has none to control")
    return layers
