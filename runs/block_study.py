"""Which blocks are chosen for FISEdit's masks, and what they cost: ``python -m sige.runs.block_study``.

For every mask and level of Stable Diffusion 2.1's U-Net at 768x768 each objective of ``sige.apsc`` chooses a shape. What is written
are shares and means over all masks, as rows of the long table that ship with the project; never a mask.
"""

import argparse
import dataclasses
import datetime
import functools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sige.runs import environment

MODEL, EXPERIMENT, EDIT = "sd21_unet", "fisedit_blocks", "fisedit-all"
LEVELS = (96, 48, 24, 12)
FIXED = ((2, 2), (4, 4), (8, 8))
OBJECTIVES = ("printed", "printed_without_2", "gathered", "multiplications", "measured_whole", "measured")
_WHOLE = "measured_whole"  # what the time of every choice is told in: tiles convolved whole, as FISEdit does
_BRANCHES = 2  # of guidance: each mask holds in both


@functools.cache
def layers():
    """The convolutions of each level of the network: {(side, side): layers as of ``sige.apsc.MeasuredTime``}."""
    import torch
    from omegaconf import OmegaConf

    from sige import apsc, policy
    from sige.analysis.targets import configuration_folder
    from sige.runs.models.zoo import Zoo

    model = OmegaConf.to_container(OmegaConf.load(configuration_folder("model") / f"{MODEL}.yaml"))
    zoo = Zoo(model, "meta")
    side = model["input"]["height"]
    inputs = zoo.inputs(torch.zeros(3, side, side), 0)
    adaptive = dataclasses.replace(policy("fisedit_radical"), block="adaptive")
    return apsc.layers_of_model(zoo.module("channels_last", "float32"), adaptive, *inputs)


def objectives(level, table, of_level):
    """{name: (objective, shapes it chooses from)} at a level (height, width)."""
    from sige import apsc

    tiles, room = apsc.fitting(apsc.SHAPES, *level, dividing=True), apsc.fitting(apsc.SHAPES, *level)
    without = tuple(shape for shape in tiles if min(shape) > 2) or tiles
    found = {name: (objective, tiles) for name, objective in apsc.OBJECTIVES.items()}
    found["printed_without_2"] = (apsc.printed_objective, without)
    found[_WHOLE] = (apsc.MeasuredTime(table, of_level, "always"), tiles)
    found["measured"] = (apsc.MeasuredTime(table, of_level, "faster"), room)
    return found


def costs(mask, objective, shapes):
    """Cost of each of ``shapes`` for each mask (n, H, W): float64 (shapes, n)."""
    from sige import apsc

    counts = {shape: [_BRANCHES * count for count in apsc.tile_counts(mask, shape)] for shape in shapes}
    return np.stack([np.asarray(objective(shape, *counts[shape]), dtype=np.float64) for shape in shapes])


def study(mask, table, layers_at, levels=LEVELS):
    """Yield {metric, method, value, unit} over masks (n, 96, 96), empty ones left out.

    block_share.<level>.<h>x<w>     share of the masks for which an objective (``method``) chooses a shape, %
    block_cost.<level>.<h>x<w>      what the choices cost, in the objective's own terms, over a fixed shape's cost: a ratio of sums
    block_time.<level>.<h>x<w>      the same in measured time of tiles convolved whole
    block_ms.<level>                mean measured time of the level's convolutions over all masks, by the engine's own choice of way
                                    for ``measured``, whole tiles for the others, ms; ``block_ms.all`` is the sum over levels
    """
    from sige import masks

    mask = mask[mask.flatten(1).any(1)]
    times = {}
    for side in levels:
        at_level, of_level = masks.reduce_max(mask, side, side), layers_at[side, side]
        wanted = objectives((side, side), table, of_level)
        whole, tiles = wanted[_WHOLE]
        in_time = costs(at_level, whole, tiles)
        for name in OBJECTIVES:
            objective, shapes = wanted[name]
            prices = costs(at_level, objective, shapes)
            best = prices.argmin(0)
            yield from _choices(name, side, shapes, prices, best)
            if name == "measured":
                times.setdefault(name, []).append(prices.min(0).mean())
            else:
                taken = in_time[[tiles.index(shapes[i]) for i in best], np.arange(len(best))]
                times.setdefault(name, []).append(taken.mean())
                yield from _against(f"block_time.{side}", name, taken, tiles, in_time)
    for name, seconds in times.items():
        for side, value in zip((*levels, "all"), (*seconds, sum(seconds)), strict=True):
            yield {"metric": f"block_ms.{side}", "method": name, "value": 1e3 * value, "unit": "ms"}


def _choices(name, side, shapes, prices, best):
    for number, (h, w) in enumerate(shapes):
        if (best == number).any():
            share = 100 * float((best == number).mean())
            yield {"metric": f"block_share.{side}.{h}x{w}", "method": name, "value": share, "unit": "%"}
    yield from _against(f"block_cost.{side}", name, prices.min(0), shapes, prices)


def _against(metric, name, chosen, shapes, prices):
    """The chosen costs over those of each fixed shape; none where a formula says that the fixed shape costs nothing."""
    for h, w in FIXED:
        fixed = prices[shapes.index((h, w))].sum() if (h, w) in shapes else 0
        if fixed:
            yield {"metric": f"{metric}.{h}x{w}", "method": name, "value": float(chosen.sum() / fixed), "unit": "x"}


def rows(mask, table, layers_at, levels=LEVELS):
    """The study as rows of the long table, provenance ``shipped``."""
    from sige.analysis import schema

    masks_used = int(mask.flatten(1).any(1).sum())
    machine = next((line.removeprefix("machine: ") for line in table.about if line.startswith("machine: ")), "unknown")
    common = {"run_id": "fisedit-blocks", "status": "ok", "experiment": EXPERIMENT, "model": MODEL, "hardware": "cpu"}
    common |= {"device": machine, "dtype": "float32", "dataset": "prompt_masks", "edit": EDIT, "scope": "layer"}
    common |= {"n": masks_used, "provenance": "shipped", "started": datetime.date.today().isoformat()}
    common |= {"edit_area": float(mask.float().mean()), "code": environment.commit()}
    columns = [name for name in schema.COLUMNS if name not in ("config", "paper_cell", "lo", "hi", "seed", "weights")]
    common |= {"reason": "", "policy": "", "baseline": ""}
    found = [common | row | {"value": round(row["value"], 5)} for row in study(mask, table, layers_at, levels)]
    return pd.DataFrame(found)[columns]


def main(arguments=None):
    """Run from the command line; returns the exit status."""
    import sige.analysis
    from sige import block_costs
    from sige.analysis import schema
    from sige.datasets import prompt_masks
    from sige.datasets.edit import MissingSample

    target = Path(sige.analysis.__path__[0]) / "shipped" / "fisedit_block_choices.csv"
    parser = argparse.ArgumentParser(prog="python -m sige.runs.block_study", description=__doc__.split("\n")[0])
    parser.add_argument("--masks", help="folder of masks_3000.npz; default: where the data sets are looked for")
    parser.add_argument("--output", type=Path, default=target, help="where the rows go; default: those that ship")
    chosen = parser.parse_args(arguments)
    try:
        mask = prompt_masks.read_all(chosen.masks)
    except MissingSample as error:
        print(error, file=sys.stderr)
        return 1
    found = rows(mask, block_costs.read("composed"), layers())
    schema.write_atomically({chosen.output: found.to_csv(index=False).encode()})
    print(f"{len(found)} rows -> {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
