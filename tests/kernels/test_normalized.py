"""A group norm that its rows change, on every backend, against PyTorch's norm of the whole edited map in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_fused import PICKED, activated, call, close, in_two, untouched
from test_parity import backend, dtype, random, sums_of, unwritten_memory_is_nan, widest  # noqa: F401


class Edit:
    """Maps of which tiles change, and what their rows become: operands (``given``) and, in float64, ``exact``."""

    def __init__(self, dtype, tiles, side, channels, groups, batch=1, affine=True, activation="silu", grid=12):  # noqa: F811
        shape = batch * grid, side**2, groups, channels // groups
        before = random(*shape, dtype=dtype) * 0.5 + 3
        self.changed = torch.randperm(len(before), generator=torch.Generator().manual_seed(4))[:tiles].sort().values
        after = before.clone()
        after[self.changed] = random(tiles, *shape[1:], dtype=dtype, seed=1) + 2
        centre = before.float().view(batch, -1, *shape[2:]).mean((1, 3))
        of_tile = centre.repeat_interleave(grid, 0)
        sums = sums_of(before, of_tile).float()
        weight, bias = (random(channels, dtype=dtype, seed=seed) if affine else None for seed in (2, 3))
        wide = [None if x is None else x.double() for x in (weight, bias)]
        maps = after.double().view(batch, -1, channels).permute(0, 2, 1)
        normed = F.group_norm(maps, groups, *wide, 1e-5).permute(0, 2, 1).reshape(len(before), -1, channels)
        self.exact = activated(normed[self.changed].reshape(-1, channels), activation)
        self.exact_sums = sums.double().index_copy(0, self.changed, sums_of(after, of_tile)[self.changed])
        self.exact_totals = self.exact_sums.view(batch, grid, -1).sum(1)
        self.rows, self.sums_before = after[self.changed].reshape(-1, channels), sums.clone()
        self.given = dict(
            rows=self.rows, rest=None, rest_rows=None, sums=sums, tile_index=self.changed, centre=centre.to(widest()),
            totals=sums.double().view(batch, grid, -1).sum(1).to(widest()), sample=None if batch == 1 else self.changed // grid,
            weight=weight, bias=bias, groups=groups, map_values=grid * side**2 * (channels // groups), eps=1e-5,
            activation=activation, slope=0.2,
        )  # fmt: skip
        # Places of the changed tiles' rows in a map of all, tile after tile.
        self.positions = (self.changed[:, None] * side**2 + torch.arange(side**2)).flatten()
        self.target = random(len(before) * side**2, channels, dtype=dtype, seed=7)

    def run(self, **more):
        return call("normalize_rows_", **self.given, **more)

    def kept(self, old, totals):
        """Whether the sums are those of the edited map, and what they were was given back."""
        sums = self.given["sums"]
        new = torch.allclose(sums.double(), self.exact_sums, rtol=1e-5, atol=1e-4)
        moved = torch.allclose(totals.double(), self.exact_totals, rtol=1e-6, atol=1e-3)
        return new and moved and torch.equal(old, self.sums_before[self.changed])


SIZES = pytest.mark.parametrize(
    "side, channels, groups", [(1, 24, 8), (2, 3, 1), (2, 17, 17), (4, 24, 8)], ids=lambda value: str(value)
)


BATCHES = pytest.mark.parametrize("batch", [1, 2], ids=["one sample", "two samples"])


@SIZES
@BATCHES
def test_into_new_rows(dtype, side, channels, groups, batch):  # noqa: F811
    edit = Edit(dtype, 7, side, channels, groups, batch, affine=side != 2)
    old, totals, made = edit.run()
    assert (made.dtype, close(made, edit.exact), edit.kept(old, totals)) == (dtype, True, True)


@BATCHES
@pytest.mark.parametrize("tiles", [0, 1], ids=["no tile", "one tile"])
def test_of_few_tiles(tiles, batch):
    edit = Edit(torch.float32, tiles, 4, 24, 8, batch)
    old, totals, made = edit.run()
    assert (close(made, edit.exact), edit.kept(old, totals)) == (True, True)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "gelu"])
def test_into_a_map(dtype, activation):  # noqa: F811
    edit = Edit(dtype, 7, 4, 24, 8, activation=activation)
    before = edit.target.clone()
    old, totals, was = edit.run(target=edit.target, positions=edit.positions)
    found = close(edit.target[edit.positions], edit.exact), untouched(edit.target, before, edit.positions)
    assert (*found, torch.equal(was, before[edit.positions]), edit.kept(old, totals)) == (True,) * 4


@PICKED
@pytest.mark.parametrize("first", [12, 17], ids=["between groups", "inside a group"])
def test_of_two_tensors(dtype, picked, first):  # noqa: F811
    edit = Edit(dtype, 7, 4, 24, 8, batch=2)
    rows, rest = in_two(edit.rows, first, picked)
    edit.given.update(rows=rows, **rest)
    old, totals, was = edit.run(target=edit.target, positions=edit.positions)
    assert (close(edit.target[edit.positions], edit.exact), edit.kept(old, totals)) == (True, True)


@BATCHES
def test_of_many_tiles(batch):
    """So many that Triton shares them out."""
    edit = Edit(torch.float32, 140, 8, 24, 8, batch, grid=150)
    rows, rest = in_two(edit.rows, 17, True)
    edit.given.update(rows=rows, **rest)
    old, totals, was = edit.run(target=edit.target, positions=edit.positions)
    assert (close(edit.target[edit.positions], edit.exact), edit.kept(old, totals)) == (True, True)


def test_an_unknown_activation_is_refused():
    edit = Edit(torch.float32, 1, 1, 24, 8)
    edit.given["activation"] = "tanh"
    with pytest.raises(
        ValueError, match="^unknown activation 'tanh': choose one of none, silu, relu, leaky_relu, gelu$"
    ):
        edit.run()
