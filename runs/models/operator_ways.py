"""Ways to compute what an operator of the kernels computes: the operator itself, and what one would compose of PyTorch's own.

Everything that does not change from step to step (row numbers, weights in another order) is made beforehand, for every way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sige.kernels import backends, ops
from sige.runs.models import operators
from sige.runs.models.operators import EPS, TILE, as_rows, heads


@dataclass
class Call:
    """An operator's arguments for one edit.

    module: the weights.   sample: (1, C, H, W), channels last.   rows: (n,) active positions, tile after tile.   tiles: (T,) flat tile
    numbers.   values: (n, C) the map's rows there.
    """

    module: operators.Operator
    sample: torch.Tensor
    rows: torch.Tensor
    tiles: torch.Tensor
    values: torch.Tensor

    @property
    def shape(self) -> dict:
        """The map's shape, as in the configuration."""
        return self.module.shape

    @property
    def places(self) -> torch.Tensor:
        """Where the results lie in the whole result: positions, or of `update_statistics_` tiles."""
        if self.module.operator == "compact":  # lists in the order of rows
            return self.rows.sort()[0]
        return self.tiles if self.module.operator == "update_statistics_" else self.rows


def call(module: operators.Operator, sample: torch.Tensor, mask: torch.Tensor) -> Call:
    """The arguments for a mask (H, W) at the picture's resolution."""
    chosen = operators.tiles(mask, module.shape)
    rows = operators.windows(chosen, module.shape, TILE).flatten()
    device = sample.device
    sample = sample.contiguous(memory_format=torch.channels_last)
    return Call(module, sample, rows.to(device), chosen.to(device), as_rows(sample)[rows.to(device)])


def _parts(call):
    return as_rows(call.sample), call.module.weight, call.module.bias


def _conv_rows(call):
    source, weight, bias = _parts(call)
    index = operators.taps(call.rows.cpu(), call.shape).to(source.device)
    tiling = (call.shape["height"], call.shape["width"], TILE, TILE)
    return lambda: ops.conv_rows(source, index, weight, bias, call.shape.get("groups", 1), tiling)


def _windows(call):
    side = TILE + call.shape["kernel"] - 1
    return side, operators.windows(call.tiles.cpu(), call.shape, side).to(call.sample.device)


def _conv_tiles(call):
    source, weight, bias = _parts(call)
    _, index = _windows(call)
    return lambda: ops.conv_tiles(source, index, TILE, weight, bias)


def _padded(call, index):
    """The map's rows and a row of zeros behind them, and row numbers that take it for positions outside the map."""
    source = as_rows(call.sample)
    return torch.cat([source, source.new_zeros(1, source.shape[1])]), torch.where(index < 0, len(source), index)


def _gather_matmul(call):
    _, weight, bias = _parts(call)
    source, index = _padded(call, operators.taps(call.rows.cpu(), call.shape).to(call.sample.device))
    matrix, flat = weight.permute(0, 2, 3, 1).flatten(1).contiguous(), index.flatten()
    return lambda: F.linear(source.index_select(0, flat).view(len(index), -1), matrix, bias)


def _gather_conv(call):
    """Each position's window as a little map of its own: for convolutions in groups, which are no matrix product."""
    _, weight, bias = _parts(call)
    source, index = _padded(call, operators.taps(call.rows.cpu(), call.shape).to(call.sample.device))
    flat, side = index.flatten(), call.shape["kernel"]

    def run():
        windows = source.index_select(0, flat).view(len(index), side, side, -1).permute(0, 3, 1, 2)
        return F.conv2d(windows, weight, bias, groups=call.shape.get("groups", 1)).flatten(1)

    return run


def _blocks(call):
    _, weight, bias = _parts(call)
    side, index = _windows(call)
    source, index = _padded(call, index)
    flat, channels = index.flatten(), source.shape[1]

    def run():
        blocks = source.index_select(0, flat).view(-1, side, side, channels).permute(0, 3, 1, 2)
        return (
            F.conv2d(blocks, weight, bias, groups=call.shape.get("groups", 1))
            .permute(0, 2, 3, 1)
            .reshape(-1, weight.shape[0])
        )

    return run


def _conv_map(call):
    _, weight, bias = _parts(call)
    margin = call.shape["kernel"] // 2
    return lambda: ops.conv_map(call.sample, weight, bias, (1, 1), (margin, margin))


def _whole_map(layout):
    def way(call):
        sample = call.sample.contiguous(memory_format=layout)
        return lambda: call.module(sample)

    return way


def _of_rows(function):
    """A way that takes the active rows, the weight and the bias."""
    return lambda call: lambda: function(call.values, call.module.weight, call.module.bias)


def _addmm(rows, weight, bias):
    return torch.addmm(bias, rows, weight.t())


def _updated(function):
    """A way that brings tile sums and totals up to date: (old sums (T, 2*groups), scale (1, C), shift (1, C)).

    It is called again and again, with the map's totals. The edit's tiles start without sums: from the second call on all that is
    remembered is the map's own, and what is returned the same every time.
    """

    def way(call):
        module, groups = call.module, call.shape["groups"]
        wide = backends.widest(call.sample.device.type)
        sums = operators.tile_sums(call.sample.to(wide), module.centre.to(wide))
        totals, sums = sums.sum((2, 3)), as_rows(sums).to(call.sample.dtype).contiguous()
        sums[call.tiles] = 0
        values = call.sample.numel() // groups
        state = (call.values, sums, call.tiles, module.centre.to(wide), totals, module.weight, module.bias)
        return lambda: function(*state, groups, values)

    return way


def _update(rows, sums, tiles, centre, totals, weight, bias, groups, values):
    old, _, scale, shift = ops.update_statistics_(
        rows, sums, tiles, centre, totals, None, weight, bias, groups, values, EPS
    )
    return old, scale, shift


def _composed_of(summed):
    """The update around ``summed``, which gives the tiles' two sums (T, groups) of rows (T, P, groups, C/groups)."""

    def update(rows, sums, tiles, centre, totals, weight, bias, groups, values):
        new = torch.cat(summed(rows.view(len(tiles), TILE * TILE, groups, -1), centre), 1).to(sums.dtype)
        old = sums.index_select(0, tiles)
        sums.index_copy_(0, tiles, new)
        totals = totals + (new.to(totals.dtype) - old).sum(0, keepdim=True)
        first, second = (totals / values).view(2, groups, 1)
        scale = torch.addcmul(second, first, first, value=-1).add_(EPS).rsqrt_() * weight.view(groups, -1)
        shift = bias.view(groups, -1) - (first + centre.view(groups, 1)) * scale
        return old, scale.view(1, -1).to(rows.dtype), shift.view(1, -1).to(rows.dtype)

    return update


def _sums_in_parts(values, centre):
    # Centres channel by channel and positions before channels: passes over contiguous numbers, some 5 times as fast as without.
    apart = values - centre.float().view(-1, 1).expand(values.shape[2:]).contiguous()
    return apart.sum(1).sum(2), apart.square_().sum(1).sum(2)


def _sums_by_var_mean(values, centre):
    count = values.shape[1] * values.shape[3]
    variance, mean = torch.var_mean(values, (1, 3), correction=0)
    apart = mean - centre.float()
    return apart * count, torch.addcmul(variance, apart, apart) * count


def _attend(function):
    def way(call):
        query = heads(call.values, call.shape["heads"])
        key, value = call.module.key, call.module.value
        return lambda: function(query, key, value).transpose(1, 2).flatten(2)[0]

    return way


def _softmax(query, key, value):
    return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value


def _read(function):
    return lambda call: lambda source=as_rows(call.sample): function(source, call.rows)


def _written(function):
    """A way that writes the active rows into a map of its own, which holds the others already."""

    def way(call):
        target = as_rows(call.sample).clone()
        target[call.rows] = 0

        def run():
            function(target, call.rows, call.values)
            return target

        return run

    return way


def _expanded_gather(source, index):
    return source.gather(0, index[:, None].expand(-1, source.shape[1]))


def _expanded_scatter(target, index, rows):
    target.scatter_(0, index[:, None].expand(-1, rows.shape[1]), rows)


def _listed(function):
    """A way that lists the active rows of the mask of the edit's tiles; (n,) row numbers, then -1 where it gives a list of fixed
    length."""

    def way(call):
        rows = call.rows.sort()[0]
        mask = torch.zeros(call.shape["height"] * call.shape["width"], dtype=torch.bool, device=rows.device)
        mask[rows] = True
        mask = mask.view(1, call.shape["height"], call.shape["width"])
        return lambda: function(mask, len(rows))

    return way


def _sorted_by_rank(mask, capacity):
    """A list of fixed length without knowing how long it is: what waits for no host on a GPU."""
    flat = mask.flatten()
    return torch.where(flat, torch.arange(flat.numel(), device=mask.device), flat.numel()).sort()[0][:capacity]


_CONVOLUTION = {
    "gather_matmul": _gather_matmul,
    "blocks": _blocks,
    "whole_map": _whole_map(torch.channels_last),
}
WAYS: dict[str, dict[str, Callable]] = {
    "conv_rows": {"kernel": _conv_rows, "gather_conv": _gather_conv, **_CONVOLUTION},
    "conv_tiles": {"kernel": _conv_tiles, **_CONVOLUTION},
    "conv_map": {
        "kernel": _conv_map,
        "whole_map": _whole_map(torch.channels_last),
        "channels_first": _whole_map(torch.contiguous_format),
    },
    "linear_rows": {"kernel": _of_rows(ops.linear_rows), "linear": _of_rows(F.linear), "addmm": _of_rows(_addmm)},
    "affine_rows": {
        "kernel": _of_rows(ops.affine_rows),
        "in_parts": _of_rows(lambda rows, scale, shift: rows * scale + shift),
        "addcmul": _of_rows(lambda rows, scale, shift: torch.addcmul(shift, rows, scale)),
    },
    "update_statistics_": {
        "kernel": _updated(_update),
        "in_parts": _updated(_composed_of(_sums_in_parts)),
        "var_mean": _updated(_composed_of(_sums_by_var_mean)),
    },
    "gather_rows": {
        "kernel": _read(ops.gather_rows),
        "indexing": _read(lambda source, index: source[index]),
        "index_select": _read(lambda source, index: source.index_select(0, index)),
        "gather": _read(_expanded_gather),
    },
    "scatter_rows_": {
        "kernel": _written(ops.scatter_rows_),
        "indexing": _written(lambda target, index, rows: target.__setitem__(index, rows)),
        "index_copy": _written(lambda target, index, rows: target.index_copy_(0, index, rows)),
        "scatter": _written(_expanded_scatter),
    },
    "compact": {
        "kernel": _listed(lambda mask, capacity: ops.compact(mask, capacity)[0]),
        "nonzero": _listed(lambda mask, capacity: mask.flatten().nonzero().flatten()),
        "sort": _listed(_sorted_by_rank),
    },
    "attend": {
        "kernel": _attend(ops.attend),
        "sdpa": _attend(F.scaled_dot_product_attention),
        "in_parts": _attend(_softmax),
    },
}
