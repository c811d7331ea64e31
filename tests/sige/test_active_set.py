"""Active sets: positions in tile order, counted by sample, with and without what hangs over the edges."""

import pytest
import torch

from sige.active_set import ActiveSet


def tiles(*marked, batch=2, rows=3, columns=4):
    grid = torch.zeros(batch, rows, columns, dtype=torch.bool)
    for place in marked:
        grid[place] = True
    return grid


SIZES = [pytest.param(12, 16, id="whole tiles"), pytest.param(11, 14, id="ragged")]


def expanded(grid, tile, height, width):
    return grid.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :height, :width]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("marked", [[], [(0, 1, 1)], [(0, 0, 0), (0, 2, 3), (1, 2, 0)], [(1, 0, 3)], [slice(None)]])
def test_mask_is_that_of_the_tiles(height, width, marked):
    grid = tiles(*marked)
    chosen = ActiveSet.from_tiles(grid, (4, 4), height, width)
    assert torch.equal(chosen.mask(), expanded(grid, 4, height, width))


@pytest.mark.parametrize("height, width", SIZES)
def test_positions_are_distinct_and_sorted_by_sample(height, width):
    chosen = ActiveSet.from_tiles(tiles((0, 0, 0), (0, 2, 3), (1, 2, 0), (1, 0, 2)), (4, 4), height, width)
    samples = chosen.positions // (height * width)
    assert (chosen.positions.unique().numel(), bool((samples.diff() >= 0).all())) == (chosen.count, True)


@pytest.mark.parametrize("height, width", SIZES)
def test_segments_are_the_samples_rows(height, width):
    chosen = ActiveSet.from_tiles(tiles((1, 0, 0), (1, 2, 3)), (4, 4), height, width)
    assert (chosen.segments[0], chosen.segments[1][1]) == ((0, 0), chosen.count)


def test_rows_come_tile_after_tile():
    chosen = ActiveSet.from_tiles(tiles((0, 0, 1), (1, 2, 3)), (4, 4), 12, 16)
    places = chosen.positions.view(2, 16)
    y, x = places // 16 % 12, places % 16
    assert ((y // 4).unique(dim=1).tolist(), (x // 4).unique(dim=1).tolist()) == ([[0], [2]], [[1], [3]])


def test_tile_numbers_are_those_of_the_maps_own_grid():
    grid = tiles((0, 0, 1), (1, 2, 0), rows=4, columns=5)  # one row and one column of tiles beyond the map
    chosen = ActiveSet.from_tiles(grid, (4, 4), 12, 16)
    assert (chosen.tile, chosen.tile_index.tolist()) == ((4, 4), [1, 3 * 4 + 2 * 4])


def test_ragged_set_has_no_tiles():
    chosen = ActiveSet.from_tiles(tiles((0, 2, 3)), (4, 4), 11, 14)
    assert (chosen.tile, chosen.tile_index, chosen.count) == (None, None, 6)


@pytest.mark.parametrize(
    "height, width, marked, outside",
    [
        pytest.param(12, 16, [(0, 1, 1)], 0, id="inside"),
        pytest.param(12, 16, [(0, 1, 1), (1, 3, 0)], 16, id="a tile below"),
        pytest.param(12, 16, [(0, 0, 4), (1, 3, 4)], 32, id="two tiles beyond"),
        pytest.param(11, 14, [(0, 2, 3)], 16 - 6, id="part of a tile"),
    ],
)
@pytest.mark.parametrize("overhang", [True, False], ids=["counted", "left out"])
def test_overhang(height, width, marked, outside, overhang):
    chosen = ActiveSet.from_tiles(tiles(*marked, rows=4, columns=5), (4, 4), height, width, overhang)
    inside = int(expanded(tiles(*marked, rows=4, columns=5), 4, height, width).sum())
    assert (chosen.count, chosen.computed) == (inside, inside + outside * overhang)


def test_overhang_lies_outside_the_map():
    chosen = ActiveSet.from_tiles(tiles((0, 2, 3), (1, 2, 3)), (4, 4), 11, 14, overhang=True)
    _, y, x = chosen.overhang.unbind(1)
    assert bool(((y >= 11) | (x >= 14)).all())


def test_everything_is_every_position_in_order():
    chosen = ActiveSet.everything(2, 3, 4)
    assert (chosen.full, chosen.count, chosen.positions.tolist(), chosen.segments) == (
        True,
        24,
        list(range(24)),
        [(0, 12), (12, 24)],
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_sample_of_each_row(batch):
    chosen = ActiveSet.from_tiles(torch.ones(batch, 1, 1, dtype=torch.bool), (2, 2), 2, 2)
    sample = chosen.sample()
    assert (None if sample is None else sample.tolist()) == (None if batch == 1 else [0, 0, 0, 0, 1, 1, 1, 1])


def test_row_of_is_the_inverse_of_positions():
    chosen = ActiveSet.from_tiles(tiles((0, 0, 1), (1, 2, 3)), (4, 4), 11, 14)
    table = chosen.row_of()
    assert (table[chosen.positions].tolist(), int((table >= 0).sum())) == (list(range(chosen.count)), chosen.count)


def test_rows_for_a_smaller_set():
    large = ActiveSet.from_tiles(tiles((0, 0, 1), (0, 2, 0), (1, 2, 3)), (4, 4), 12, 16)
    small = ActiveSet.from_tiles(tiles((0, 2, 0), (1, 2, 3)), (4, 4), 12, 16)
    rows, complete = large.rows_for(small)
    assert (torch.equal(large.positions[rows], small.positions), complete) == (True, True)


def test_rows_for_a_set_that_reaches_further():
    small = ActiveSet.from_tiles(tiles((0, 2, 0)), (4, 4), 12, 16)
    large = ActiveSet.from_tiles(tiles((0, 2, 0), (0, 2, 1)), (4, 4), 12, 16)
    rows, complete = small.rows_for(large)
    assert (int((rows < 0).sum()), complete) == (16, False)
