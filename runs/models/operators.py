"""One operator of the kernels at one shape, as a model: what it computes on a whole map, and at the tiles that an edit touches.

``model.operator`` names the operator, ``model.map`` its shape: height, width, channels, and as the operator needs them outputs,
kernel, groups, heads, tile. Ways to compute the same stand in `sige.runs.models.operator_ways`. The edit's mask decides where; the
picture does not matter, the map is made of seeded random numbers.
"""

import torch
import torch.nn.functional as F

from sige.runs.errors import UserError

CHANGED = (0,)
OPERATORS = (
    "gather_rows",
    "scatter_rows_",
    "conv_rows",
    "conv_tiles",
    "conv_map",
    "linear_rows",
    "affine_rows",
    "update_statistics_",
    "attend",
    "compact",
)
_CONVOLUTIONS = ("conv_rows", "conv_tiles", "conv_map")
PARTS = ("sige.runs.models.operator_ways",)  # what makes the numbers besides this file
TILE = 8  # side of the tiles that an edit's positions come in
EPS = 1e-5  # of a normalisation


def weights_digest(model: dict) -> str:
    """Seed of the random weights."""
    return f"random:{model['seed']}"


class Operator(torch.nn.Module):
    """Weights of the operator, and its result on a whole map."""

    def __init__(self, operator: str, shape: dict):
        super().__init__()
        self.operator, self.shape = operator, shape
        channels, outputs = shape["channels"], shape.get("outputs", shape["channels"])
        if operator in _CONVOLUTIONS:
            side, each = shape["kernel"], channels // shape.get("groups", 1)
            self.weight = _parameter(outputs, each, side, side, scale=(each * side * side) ** -0.5)
            self.bias = _parameter(outputs)
        elif operator == "linear_rows":
            self.weight, self.bias = _parameter(outputs, channels, scale=channels**-0.5), _parameter(outputs)
        elif operator == "affine_rows":
            self.weight, self.bias = _parameter(1, channels), _parameter(1, channels)
        elif operator == "update_statistics_":
            self.weight, self.bias = _parameter(channels), _parameter(channels)
            self.centre = _parameter(1, shape["groups"], scale=0.1)
        elif operator == "attend":
            tokens = shape["height"] * shape["width"]
            self.key, self.value = (_parameter(1, shape["heads"], tokens, channels // shape["heads"]) for _ in range(2))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """The result at every position: (1, C, H, W) to (1, O, H, W).

        Of `update_statistics_` at every tile, (1, 2*groups + 2*C, H/tile, W/tile): its sums, and the map's scale and shift.
        """
        if self.operator in _CONVOLUTIONS:
            groups = self.shape.get("groups", 1)
            return F.conv2d(sample, self.weight, self.bias, padding=self.shape["kernel"] // 2, groups=groups)
        if self.operator == "linear_rows":
            return F.conv2d(sample, self.weight[:, :, None, None], self.bias)
        if self.operator == "affine_rows":
            return sample * self.weight[:, :, None, None] + self.bias[:, :, None, None]
        if self.operator == "update_statistics_":
            sums = tile_sums(sample, self.centre)
            maps = _normalisation(sample, self.weight, self.bias, self.shape["groups"])
            return torch.cat([sums, maps[None, :, None, None].expand(-1, -1, *sums.shape[2:])], 1)
        if self.operator == "attend":
            rows = F.scaled_dot_product_attention(heads(as_rows(sample), self.shape["heads"]), self.key, self.value)
            return rows.transpose(1, 2).reshape(1, *sample.shape[2:], -1).permute(0, 3, 1, 2)
        return sample.clone()


def _parameter(*shape, scale=1.0):
    return torch.nn.Parameter(scale * torch.randn(shape), requires_grad=False)


def tile_sums(sample: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Sums of x - c and of (x - c)^2 of each tile and channel group of a map (1, C, H, W), about ``centre`` (1, groups).

    Returns (1, 2*groups, H/tile, W/tile), first sums and then second ones.
    """
    (channels, height, width), groups = sample.shape[1:], centre.shape[1]
    tiles = sample.reshape(groups, channels // groups, height // TILE, TILE, width // TILE, TILE)
    apart = tiles - centre.view(groups, 1, 1, 1, 1, 1)
    return torch.cat([apart.sum((1, 3, 5)), apart.square().sum((1, 3, 5))])[None]


def _normalisation(sample, weight, bias, groups):
    """Scale and shift (2*C,) of a group normalisation of a map (1, C, H, W)."""
    variance, mean = torch.var_mean(sample.reshape(groups, -1), 1, correction=0)
    mean, rstd = (part.repeat_interleave(len(weight) // groups) for part in (mean, (variance + EPS).rsqrt()))
    return torch.cat([rstd * weight, bias - mean * rstd * weight])


def as_rows(sample: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) as rows (H*W, C); a view of a channels-last map."""
    return sample.permute(0, 2, 3, 1).reshape(-1, sample.shape[1])


def heads(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows (n, C) as (1, heads, n, C/heads)."""
    return rows.view(1, rows.shape[0], count, -1).transpose(1, 2)


def build(model: dict) -> Operator:
    """The operator with random weights of the config's seed."""
    shape = model["map"]
    if model["operator"] not in OPERATORS:
        raise UserError(f"unknown operator {model['operator']!r}; choose one of {', '.join(OPERATORS)}.")
    if shape["height"] % TILE or shape["width"] % TILE:
        raise UserError(f"a map of {shape['height']}x{shape['width']} is not made of tiles of {TILE}x{TILE}.")
    torch.manual_seed(model["seed"])
    return Operator(model["operator"], shape).eval().requires_grad_(False)


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
    """(1, C, H, W) of seeded random numbers, for any picture."""
    shape = model["map"]
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, shape["channels"], shape["height"], shape["width"], generator=generator),)


def forward(module: Operator, sample: torch.Tensor) -> torch.Tensor:
    """The operator's result on a whole map."""
    return module(sample)


def tiles(mask: torch.Tensor, shape: dict) -> torch.Tensor:
    """Flat numbers (T,) of the tiles of a map that a mask (H, W) at the picture's resolution touches."""
    from sige.masks import reduce_max

    return reduce_max(mask.cpu()[None], shape["height"] // TILE, shape["width"] // TILE).flatten().nonzero().flatten()


def windows(chosen: torch.Tensor, shape: dict, side: int) -> torch.Tensor:
    """Rows (T, side*side) that the square windows around chosen tiles cover, -1 outside the map; ``side`` is TILE or wider."""
    across, margin = shape["width"] // TILE, (side - TILE) // 2
    inner = torch.arange(side) - margin
    y = (chosen // across * TILE)[:, None, None] + inner[:, None]
    x = (chosen % across * TILE)[:, None, None] + inner
    inside = (y >= 0) & (y < shape["height"]) & (x >= 0) & (x < shape["width"])
    return torch.where(inside, y * shape["width"] + x, -1).flatten(1)


def taps(rows: torch.Tensor, shape: dict) -> torch.Tensor:
    """Rows (n, k*k) that a convolution of stride 1 reads at each of ``rows`` (n,), -1 outside the map."""
    reach = torch.arange(shape["kernel"]) - shape["kernel"] // 2
    y = (rows // shape["width"])[:, None, None] + reach[:, None]
    x = (rows % shape["width"])[:, None, None] + reach
    inside = (y >= 0) & (y < shape["height"]) & (x >= 0) & (x < shape["width"])
    return torch.where(inside, y * shape["width"] + x, -1).flatten(1)


def work(model: dict, count: int, read: int, itemsize: int) -> tuple[int, int]:
    """(multiply-accumulates, bytes) of one call at ``count`` positions: the least that must be read and written, each number once.

    read: rows of the map that are read.   itemsize: bytes of a number.
    """
    operator, shape = model["operator"], model["map"]
    channels, outputs = shape["channels"], shape.get("outputs", shape["channels"])
    if operator == "conv_map":
        count = read = shape["height"] * shape["width"]
    if operator in _CONVOLUTIONS:
        taps = shape["kernel"] ** 2
        index = {"conv_rows": count * taps, "conv_tiles": count // TILE**2 * (TILE + shape["kernel"] - 1) ** 2}
        weights = taps * channels * outputs // shape.get("groups", 1)
        numbers = read * channels + weights + count * outputs
        return count * weights, numbers * itemsize + 8 * index.get(operator, 0)
    if operator == "linear_rows":
        return count * channels * outputs, (count * (channels + outputs) + channels * outputs) * itemsize
    if operator == "attend":
        tokens = shape["height"] * shape["width"]
        return 2 * count * tokens * channels, 2 * (count + tokens) * channels * itemsize
    if operator == "compact":
        return 0, shape["height"] * shape["width"] + 8 * count
    if operator == "update_statistics_":
        # Of each tile sums are read, written anew, and what was there is returned; a weight, a bias, a scale and a shift.
        tiles, groups = count // TILE**2, shape["groups"]
        return 0, (count * channels + 3 * tiles * 2 * groups + 4 * channels) * itemsize + 8 * (tiles + 5 * groups)
    index = 8 * count if operator in ("gather_rows", "scatter_rows_") else 0
    return 0, 2 * count * channels * itemsize + index
