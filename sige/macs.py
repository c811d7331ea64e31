"""Multiply-accumulates counted at the dispatcher: what really ran, attention and the engine's own operators included.

The rules of the engine count their own; this counter is the independent check, and counts models that run without the engine,
on meta tensors too. PyTorch's stock counter takes attention products on a CPU and unregistered operators as zero: here every
operator is either counted, known to multiply nothing, or listed.
"""

import dataclasses

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

_KINDS = {
    "conv": (
        "convolution",
        "_convolution",
        "conv_rows",
        "conv_tiles",
        "conv_map",
        "conv_map_fused",
        "conv_rows_fused",
        "mkldnn_convolution",
        "_convolution_pointwise",
    ),
    "linear": ("mm", "addmm", "linear", "linear_rows", "project_rows", "_linear_pointwise"),
    "attention": ("bmm", "baddbmm", "scaled_dot_product", "attend"),
}

# Operators that move, reduce or map values without matrix products. Norms and pointwise work are not counted, by convention.
_FREE = frozenset(
    """
    _local_scalar_dense _reshape_alias _softmax _to_copy _unsafe_view abs add add_ addcmul alias all amax any arange as_strided atan
    avg_pool2d bitwise_and bitwise_not bitwise_or cat ceil clamp clamp_min clone constant_pad_nd copy copy_ cos count_nonzero cumsum
    detach div div_ elu empty empty_like empty_strided eq equal exp expand fill fill_ flip floor full full_like gather ge gelu glu gt
    hardswish hardtanh index index_add index_copy_ index_fill_ index_put_ index_select isfinite le leaky_relu lift_fresh
    linspace log logical_and logical_not logical_or lt masked_fill max max_pool2d_with_indices maximum mean min minimum mish mul
    mul_ native_batch_norm native_dropout native_group_norm native_layer_norm ne neg new_empty new_full new_ones new_zeros
    nonzero ones ones_like permute pow pow_ prod rand randn randn_like reciprocal reflection_pad2d relu repeat replication_pad2d
    rsqrt rsub scalar_tensor select sigmoid sign silu silu_ sin slice softplus split split_with_sizes sqrt square squeeze stack
    sub sub_ sum t tanh transpose tril triu unbind unfold unsqueeze upsample_bilinear2d upsample_nearest2d var_mean view
    view_as_complex view_as_real where zero_ zeros zeros_like _adaptive_avg_pool2d adaptive_max_pool2d erf bernoulli
    _native_batch_norm_legit_no_training _fused_rms_norm round log2 bincount
    gather_rows scatter_rows_ exchange_rows_ affine_rows activate_rows update_statistics_ compact normalize_map
    normalize_rows_
    _safe_softmax floor_divide remainder bitwise_or_ promote_types _softmax_backward_data native_layer_norm_backward
    native_group_norm_backward silu_backward gelu_backward upsample_nearest2d_backward
    """.split()
)


@dataclasses.dataclass
class MacCount:
    """total: multiply-accumulates.   by_kind: of convolutions, linear layers and attention products.   unlisted: names of executed
    operators that are neither counted nor known to multiply nothing; a count with any is not to be trusted."""

    total: int = 0
    by_kind: dict = dataclasses.field(default_factory=lambda: {"conv": 0, "linear": 0, "attention": 0})
    unlisted: list = dataclasses.field(default_factory=list)


def _attention_products(query, key, value):
    batch, heads, queries, width = query
    return batch * heads * queries * key[-2] * (width + value[-1])


class MacCounter(TorchDispatchMode):
    """Counts what runs inside the ``with`` block into ``.count``."""

    def __init__(self):
        super().__init__()
        self.count = MacCount()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        macs = self._macs(func, name, args, kwargs or {}, out)
        if macs is not None:
            kind = next(
                (kind for kind, starts in _KINDS.items() if name.strip("_").startswith(starts) or name in starts),
                "conv",
            )
            if name == "bmm" and args[1].shape[0] > 1 and args[1].stride(0) == 0:
                kind = "linear"  # a linear layer on a sequence that lies in memory as a map: one weight, expanded
            self.count.by_kind[kind] += macs
            self.count.total += macs
        elif name not in _FREE and name not in self.count.unlisted:
            self.count.unlisted.append(name)
        return out

    @staticmethod
    def _macs(func, name, args, kwargs, out):
        if "scaled_dot_product" in name and "backward" not in name:
            return _attention_products(*(tuple(x.shape) for x in args[:3]))
        if name == "_linear_pointwise":
            return args[0].numel() * out.shape[-1]
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            return None
        return int(formula(*args, **kwargs, out_val=out)) // 2


def count(model, *args, **kwargs):
    """Run ``model(*args, **kwargs)`` once without gradients and return its :class:`MacCount`. Meta tensors will do."""
    with torch.no_grad(), MacCounter() as counter:
        model(*args, **kwargs)
    return counter.count
