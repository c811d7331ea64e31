"""What blocks cost: seconds of the row operators by tile shape, count and channels, as measured on one machine.

A table is a CSV beside this file: ``block_costs_cpu.csv`` for a device type, ``block_costs_composed.csv`` for a CPU without compiled
kernels. Its first lines, which begin with #, say where the numbers come from. ``python -m sige.runs.tune_blocks`` measures it anew.
"""

import csv
import functools
import math
from pathlib import Path

import numpy as np

from sige.errors import PolicyError
from sige.kernels import backends

COLUMNS = ("operator", "rows", "columns", "channels", "count", "seconds")
OPERATORS = ("conv_tiles", "conv_rows", "linear_rows", "around")
_GROWTH = {"around": 1.0}  # power of the channels with which time grows beyond those measured; 2 for matrix products


class CostTable:
    """Measured seconds of ``conv_tiles`` (3x3, by tile shape and number of tiles), ``conv_rows`` (3x3), ``linear_rows`` and
    ``around`` (scale, activate and write back; all by number of positions), each from as many channels to as many.

    rows: dicts with the columns ``COLUMNS``; rows and columns 0 where there are no tiles.   about: the lines on their origin.
    """

    def __init__(self, rows, about=()):
        self.about = tuple(about)
        grouped = {}
        for row in rows:
            tile = (int(row["rows"]), int(row["columns"]))
            curves = grouped.setdefault((row["operator"], tile if tile != (0, 0) else None), {})
            curves.setdefault(int(row["channels"]), []).append((int(row["count"]), float(row["seconds"])))
        self._curves = {
            key: {channels: np.log(np.array(sorted(points))).T for channels, points in sorted(curves.items())}
            for key, curves in grouped.items()
        }
        missing = [name for name in OPERATORS[1:] if (name, None) not in self._curves]
        if missing or not self.shapes():
            raise PolicyError(f"a table of block costs lacks {', '.join(missing or ['conv_tiles'])}: measure it anew")

    @classmethod
    def read(cls, path):
        """The table in a file. PolicyError naming the file and what is wrong with it."""
        lines = Path(path).read_text().splitlines()
        about = [line.lstrip("# ") for line in lines if line.startswith("#")]
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        try:
            return cls(rows, about)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(
                f"{path} is no table of block costs ({type(error).__name__}: {error}): its columns must be {', '.join(COLUMNS)}"
            ) from error

    def shapes(self):
        """The tile shapes (rows, columns) that were measured."""
        return tuple(tile for operator, tile in self._curves if operator == "conv_tiles")

    def knows(self, tile):
        """Whether tiles of this shape were measured."""
        return ("conv_tiles", tile) in self._curves

    def seconds(self, operator, tile, inputs, outputs, counts):
        """Seconds of one call for each of ``counts`` (tiles or positions; 0 costs nothing).

        Between measured counts and channels times are interpolated on logarithmic scales, from ``inputs`` to ``outputs`` channels
        as from sqrt(inputs * outputs) to as many. Beyond the largest count time grows in proportion; below the smallest it stays.
        """
        counts = np.asarray(counts, dtype=np.float64)
        curves = self._curves[operator, tile]
        places = np.log(np.maximum(counts, 1))
        times = np.stack([_along(curve, places) for curve in curves.values()])
        known, wanted = np.log(list(curves)), math.log(math.sqrt(inputs * outputs))
        beyond = _GROWTH.get(operator, 2.0) * (wanted - np.clip(wanted, known[0], known[-1]))
        after = int(np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)) if len(known) > 1 else 0
        if after:
            weight = np.clip((wanted - known[after - 1]) / (known[after] - known[after - 1]), 0, 1)
            found = (1 - weight) * times[after - 1] + weight * times[after]
        else:
            found = times[0]
        return np.where(counts > 0, np.exp(found + beyond), 0.0)


def _along(curve, places):
    """log seconds at log counts ``places`` of a curve (2, n) of the same."""
    known, times = curve
    return np.interp(places, known, times) + np.maximum(places - known[-1], 0)


def path(name):
    """Where the table of a device type, or of ``composed`` products on a CPU, stands."""
    return Path(__file__).parent / f"block_costs_{name}.csv"


@functools.lru_cache(maxsize=None)
def read(name):
    """The table of a device type, or of ``composed`` products on a CPU; None where none was measured."""
    return CostTable.read(path(name)) if path(name).is_file() else None


def priced(device_type):
    """Whose prices hold on a device now; on the meta device, which computes nothing, those of a CPU with compiled kernels."""
    if device_type not in ("cpu", "meta"):
        return device_type
    return "composed" if backends.gathers(device_type) else "cpu"


def known(device_type="cpu"):
    """The table of a device type, None where none was measured."""
    return read(priced(device_type))


def table(device_type="cpu"):
    """The table of a device type. PolicyError where none was measured."""
    found = known(device_type)
    if found is None:
        raise PolicyError(
            f"policy block='adaptive' has no measured block costs for {device_type}: run python -m sige.runs.tune_blocks "
            f"--device {device_type} on an idle machine, or set block_objective to a formula"
        )
    return found


def whole_tiles_pay(device_type, layers, tile, tiles, positions):
    """Whether convolutions are faster tile by tile, with ``tiles`` whole ones of shape ``tile``, than at ``positions`` one by one.

    layers: {(input channels of a group, outputs): how many such convolutions}. False where nothing was measured, and where no taps are
    gathered: tiles save nothing there, and what follows them is fused with single positions only.
    """
    costs = known(device_type)
    if costs is None or not costs.knows(tile) or not backends.gathers(device_type):
        return False
    ways = (("conv_tiles", tile, tiles), ("conv_rows", None, positions))
    whole, rows = (
        sum(times * costs.seconds(operator, shape, *size, count) for size, times in layers.items())
        for operator, shape, count in ways
    )
    return bool(whole < rows)
