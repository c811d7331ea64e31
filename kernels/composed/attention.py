"""Attention of a few queries over many keys, on a CPU.

PyTorch's fused attention multiplies at 75-100 GMAC/s in float32 on two Zen 5 cores, less than half of what oneDNN's matrix products
reach. Where there is enough to multiply, two such products around a softmax, over as many queries at a time as keep their scores in the
last-level cache, are 1.3 to 2 times as fast; measured for 64 to 4096 queries, 256 to 9216 keys and heads 40 to 512 wide.
"""

import torch
import torch.nn.functional as F

from sige.kernels.by_token import by_token
from sige.kernels.composed.convolution import prepacking

_SCORES = 1 << 20  # of a chunk of queries: 4 MiB
_LEAST_QUERIES, _LEAST_KEYS = 128, 1024


def attend(query, key, value, mask, scale):
    many = query.shape[-2] >= _LEAST_QUERIES and key.shape[-2] >= _LEAST_KEYS
    # In 16 bit the fused kernel keeps its scores in float32; products of our own would round them.
    if mask is not None or not many or query.dtype != torch.float32 or not prepacking():
        return by_token(F.scaled_dot_product_attention(query, key, value, mask, scale=scale))
    batch, heads, count, _ = query.shape
    out = query.new_empty(batch, count, heads, value.shape[-1])
    step = max(64, min(512, _SCORES // key.shape[-2]))
    product = torch.ops.mkldnn._linear_pointwise
    for sample in range(batch):
        for head in range(heads):
            keys, values = key[sample, head].contiguous(), value[sample, head].t().contiguous()
            for start in range(0, count, step):
                queries = (query[sample, head, start : start + step] * scale).contiguous()
                weights = torch.softmax(product(queries, keys, None, "none", [], ""), -1)
                out[sample, start : start + step, head] = product(weights, values, None, "none", [], "")
    return out.transpose(1, 2)
