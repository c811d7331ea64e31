"""The study of adaptive blocks: its shares and ratios against a count by hand, its rows, its command."""

import numpy as np
import pandas as pd
import pytest
import torch

from sige import apsc
from sige.analysis import schema
from sige.block_costs import CostTable
from sige.datasets import prompt_masks
from sige.runs import block_study
from sige.windows import canonical_window


def made_up_costs():
    """A tile costs 10 and 1 for each of its positions; a position by itself 3; all else is nearly free."""
    point = dict(rows=0, columns=0, channels=8, count=1)
    rows = [dict(point, operator=name, seconds=1e-15) for name in ("linear_rows", "around")]
    rows.append(dict(point, operator="conv_rows", seconds=3.0))
    for h, w in apsc.SHAPES:
        rows.append(dict(operator="conv_tiles", rows=h, columns=w, channels=8, count=1, seconds=10.0 + h * w))
    return CostTable(rows, ["machine: made up"])


LEVELS = (16, 8)
LAYERS = {(side, side): {canonical_window(side, side): {(8, 8): 1}} for side in LEVELS}


@pytest.fixture(scope="module")
def some_masks():
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[0, :2, :14] = masks[1, 4:12, 4:12] = masks[2, 5, 5] = masks[3, :, 3] = True
    return masks  # the last is empty


@pytest.fixture(scope="module")
def table(some_masks):
    found = block_study.study(some_masks, made_up_costs(), LAYERS, LEVELS)
    return {(row["method"], row["metric"]): row["value"] for row in found}


def by_hand(masks, price, dividing):
    """Cheapest shape of each mask, (shapes, costs), by a loop over shapes."""
    shapes = [shape for shape in apsc.SHAPES if max(shape) <= 16 and (not dividing or 16 % max(shape) == 0)]
    costs = [
        [2 * price(shape, int(apsc.tile_counts(mask[None], shape)[0][0])) for shape in shapes] for mask in masks[:4]
    ]
    return shapes, np.array(costs)


PRICES = {
    "printed": lambda shape, n: (shape[0] - 2) * (shape[1] - 2) * n,
    "gathered": lambda shape, n: (shape[0] + 2) * (shape[1] + 2) * n,
    "multiplications": lambda shape, n: shape[0] * shape[1] * n,
    "measured_whole": lambda shape, n: (10 + shape[0] * shape[1]) * n,
    "measured": lambda shape, n: min(3 * shape[0] * shape[1] * n, (10 + shape[0] * shape[1]) * n),
}


@pytest.mark.parametrize("method", PRICES)
def test_shares_are_those_counted_by_hand(some_masks, table, method):
    shapes, costs = by_hand(some_masks, PRICES[method], method != "measured")
    chosen = [shapes[i] for i in costs.argmin(1)]
    expected = {f"block_share.16.{h}x{w}": 25.0 * chosen.count((h, w)) for h, w in set(chosen)}
    found = {
        metric: value
        for (name, metric), value in table.items()
        if name == method and ".16." in metric and "share" in metric
    }
    assert found == expected


@pytest.mark.parametrize("method", ["gathered", "multiplications", "measured_whole", "measured"])
@pytest.mark.parametrize("fixed", [(2, 2), (4, 4), (8, 8)], ids=str)
def test_costs_are_over_those_of_the_fixed_shape(some_masks, table, method, fixed):
    shapes, costs = by_hand(some_masks, PRICES[method], method != "measured")
    ratio = costs.min(1).sum() / costs[:, shapes.index(fixed)].sum()
    assert table[method, f"block_cost.16.{fixed[0]}x{fixed[1]}"] == pytest.approx(ratio)


def test_a_formula_that_says_nothing_costs_anything_has_no_ratio(table):
    assert ("printed", "block_cost.16.2x2") not in table and table["printed", "block_cost.16.4x4"] == 0


def test_without_two_the_printed_formula_takes_fours(table):
    assert table["printed_without_2", "block_share.16.4x4"] == 100


@pytest.mark.parametrize("method", ["printed", "gathered", "multiplications"])
def test_choices_of_a_formula_are_told_in_measured_time(some_masks, table, method):
    shapes, prices = by_hand(some_masks, PRICES[method], True)
    _, times = by_hand(some_masks, PRICES["measured_whole"], True)
    taken = times[np.arange(4), prices.argmin(1)].sum()
    assert table[method, "block_time.16.4x4"] == pytest.approx(taken / times[:, shapes.index((4, 4))].sum())


def test_nothing_is_faster_in_measured_time_than_what_measured_time_chose(table):
    times = {
        method: value for (method, metric), value in table.items() if metric == "block_ms.all" and method != "measured"
    }
    assert min(times, key=times.get) == "measured_whole"


@pytest.mark.parametrize("method", block_study.OBJECTIVES)
def test_times_of_levels_add_up(table, method):
    levels = sum(table[method, f"block_ms.{side}"] for side in LEVELS)
    assert table[method, "block_ms.all"] == pytest.approx(levels)


def test_its_rows_follow_the_schema(some_masks):
    rows = block_study.rows(some_masks, made_up_costs(), LAYERS, LEVELS)
    for name, (dtype, _) in schema.COLUMNS.items():
        if name not in rows:
            rows[name] = "" if dtype == "str" else 0 if dtype == "int64" else float("nan")
    valid = schema.validate(rows)
    facts = {name: set(valid[name]) for name in ("provenance", "n", "device", "experiment")}
    assert facts == {"provenance": {"shipped"}, "n": {4}, "device": {"made up"}, "experiment": {"fisedit_blocks"}}


def test_no_mask_is_in_its_rows(some_masks):
    """Five masks or three thousand: as many rows, but for shapes that nobody chose."""
    one, many = (len(block_study.rows(some_masks[:n], made_up_costs(), LAYERS, LEVELS)) for n in (1, 5))
    shares = 4 * len(block_study.OBJECTIVES) * len(LEVELS)
    assert many - one <= shares


def test_the_networks_convolutions_are_counted_by_level():
    """Stable Diffusion 2.1: 22 ResNet blocks of two 3x3 convolutions, three down- and three up-sampling, and the two ends."""
    found = block_study.layers()
    spatial = {side: sum(sum(sizes.values()) for window, sizes in found[side, side].items() if window.kernel == (3, 3))
               for side in block_study.LEVELS}  # fmt: skip
    # 5, 5, 5 and 7 blocks (two of the middle); each down- and up-sampling belongs to the level that it reads
    assert spatial == {96: 2 * 5 + 1 + 2, 48: 2 * 5 + 2, 24: 2 * 5 + 2, 12: 2 * 7 + 1}


def test_masks_that_are_not_there_are_said(tmp_path, capsys):
    status = block_study.main(["--masks", str(tmp_path), "--output", str(tmp_path / "rows.csv")])
    assert (status, "masks_3000.npz" in capsys.readouterr().err) == (1, True)


def test_the_command_writes_its_rows(tmp_path, monkeypatch, some_masks):
    wide = torch.zeros(3, 96, 96, dtype=torch.bool)
    wide[:2, 10:20, 30:50] = True
    np.savez(
        tmp_path / "masks_3000.npz", index=np.arange(3), masks_packed=np.packbits(wide.numpy().reshape(3, -1), axis=1)
    )
    monkeypatch.setattr(
        block_study, "layers", lambda: {(s, s): {canonical_window(s, s): {(8, 8): 1}} for s in block_study.LEVELS}
    )
    status = block_study.main(["--masks", str(tmp_path), "--output", str(tmp_path / "rows.csv")])
    assert (status, set(pd.read_csv(tmp_path / "rows.csv")["n"])) == (0, {2})


def test_all_masks_are_read_as_they_were_stored(tmp_path):
    wide = torch.rand(3, 96, 96) > 0.5
    np.savez(
        tmp_path / "masks_3000.npz", index=np.arange(3), masks_packed=np.packbits(wide.numpy().reshape(3, -1), axis=1)
    )
    assert torch.equal(prompt_masks.read_all(str(tmp_path)), wide)
