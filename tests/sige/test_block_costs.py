"""The table of what blocks cost: read, interpolated, refused."""

import math

import numpy as np
import pytest

from sige import block_costs
from sige.block_costs import CostTable
from sige.errors import PolicyError
from sige.kernels import backends
from sige.kernels.cpu import library

HEAD = "# made up\noperator,rows,columns,channels,count,seconds\n"
LINES = """conv_tiles,2,2,64,1,1e-5
conv_tiles,2,2,64,100,1e-3
conv_rows,0,0,64,10,1e-4
conv_rows,0,0,64,1000,1e-2
conv_rows,0,0,256,10,16e-4
conv_rows,0,0,256,1000,16e-2
linear_rows,0,0,64,10,1e-6
around,0,0,64,10,1e-5
around,0,0,256,10,4e-5
"""


@pytest.fixture
def made(tmp_path):
    (tmp_path / "costs.csv").write_text(HEAD + LINES)
    return CostTable.read(tmp_path / "costs.csv")


@pytest.mark.parametrize(
    "operator, tile, inputs, outputs, count, seconds",
    [
        pytest.param("conv_rows", None, 64, 64, 10, 1e-4, id="as measured"),
        pytest.param("conv_tiles", (2, 2), 64, 64, 100, 1e-3, id="tiles as measured"),
        pytest.param("conv_rows", None, 64, 64, 100, 1e-3, id="between two counts"),
        pytest.param("conv_rows", None, 128, 128, 10, 4e-4, id="between two widths"),
        pytest.param("conv_rows", None, 64, 256, 10, 4e-4, id="unequal channels"),
        pytest.param("conv_rows", None, 64, 64, 4000, 4e-2, id="beyond the largest count"),
        pytest.param("conv_rows", None, 64, 64, 3, 1e-4, id="below the smallest count"),
        pytest.param("conv_rows", None, 512, 512, 10, 64e-4, id="beyond the widest product"),
        pytest.param("conv_rows", None, 32, 32, 10, 0.25e-4, id="below the narrowest product"),
        pytest.param("around", None, 512, 512, 10, 8e-5, id="beyond the widest map"),
        pytest.param("linear_rows", None, 128, 128, 10, 4e-6, id="one width alone"),
        pytest.param("conv_rows", None, 64, 64, 0, 0, id="nothing"),
    ],
)
def test_seconds(made, operator, tile, inputs, outputs, count, seconds):
    assert made.seconds(operator, tile, inputs, outputs, count) == pytest.approx(seconds)


def test_many_counts_at_once(made):
    assert made.seconds("conv_rows", None, 64, 64, np.array([0, 10, 1000])) == pytest.approx([0, 1e-4, 1e-2])


def test_its_origin_is_kept(made):
    assert (made.about, made.shapes(), made.knows((2, 2)), made.knows((2, 4))) == (("made up",), ((2, 2),), True, False)


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param("operator,channels\nconv_rows,3\n", r"is no table of block costs \(KeyError: 'rows'\)", id="columns"),
        pytest.param(HEAD + LINES.replace("1e-3", "fast"), "could not convert string to float: 'fast'", id="no number"),
        pytest.param(HEAD + LINES.replace("linear_rows", "other"), "lacks linear_rows: measure it anew", id="an operator"),
        pytest.param(HEAD + LINES.replace("conv_tiles", "other"), "lacks conv_tiles: measure it anew", id="tiles"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table(tmp_path, text, message):
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(PolicyError, match=message):
        CostTable.read(tmp_path / "costs.csv")


def test_a_device_that_was_not_measured_says_how_to():
    message = (
        "no measured block costs for abacus: run python -m sige.runs.tune_blocks --device abacus on an idle machine"
    )
    with pytest.raises(PolicyError, match=message):
        block_costs.table("abacus")


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_the_meta_device_has_the_prices_of_compiled_kernels(backend):
    with backends.forced(backend):
        assert block_costs.priced("meta") == "cpu"


@pytest.mark.parametrize("backend, expected", [("composed", "composed"), ("reference", "composed"), ("cpu", "cpu")])
def test_the_prices_are_those_of_the_products_that_run(backend, expected):
    if backend == "cpu" and library.library() is None:
        pytest.skip("the compiled kernels cannot be built here")
    with backends.forced(backend):
        assert block_costs.priced("cpu") == expected


# -- the table that ships --


SHIPPED = pytest.mark.parametrize("name", ["cpu", "composed"])


@SHIPPED
def test_every_shape_ships(name):
    from sige.apsc import SHAPES

    assert set(SHAPES) <= set(block_costs.read(name).shapes())


@pytest.mark.parametrize(
    "says", ["made by python -m sige.runs.tune_blocks", "machine: ", "threads", "torch ", "least of"]
)
@SHIPPED
def test_the_shipped_table_says_where_it_comes_from(name, says):
    assert says in " ".join(block_costs.read(name).about)


@pytest.mark.parametrize("operator", ["conv_rows", "linear_rows"])
@SHIPPED
def test_shipped_times_are_those_of_a_processor(name, operator):
    """Between 1 GFLOP/s and 10 TFLOP/s for a large product."""
    taps = 9 if operator == "conv_rows" else 1
    seconds = float(block_costs.read(name).seconds(operator, None, 320, 320, 4096))
    assert 1e9 < 2 * taps * 4096 * 320**2 / seconds < 1e13 and math.isfinite(seconds)


@pytest.mark.parametrize(
    "layers, tile, tiles, positions, expected",
    [
        pytest.param({(64, 64): 1}, (2, 2), 10, 40, True, id="tiles are faster"),
        pytest.param({(64, 64): 1}, (2, 2), 100, 40, False, id="rows are faster"),
        pytest.param({(64, 64): 1}, (4, 4), 10, 160, False, id="a shape that was not measured"),
    ],
)
def test_the_faster_way_by_the_table(monkeypatch, made, layers, tile, tiles, positions, expected):
    monkeypatch.setattr(block_costs, "known", lambda device_type: made)
    with backends.forced("composed"):
        assert block_costs.whole_tiles_pay("cpu", layers, tile, tiles, positions) is expected


def test_tiles_never_pay_where_no_taps_are_gathered(monkeypatch, made):
    monkeypatch.setattr(block_costs, "known", lambda device_type: made)
    assert block_costs.whole_tiles_pay("meta", {(64, 64): 1}, (2, 2), 10, 40) is False


def test_without_a_table_one_position_at_a_time():
    assert block_costs.whole_tiles_pay("cuda", {(64, 64): 1}, (8, 8), 1000, 64000) is False


@pytest.mark.parametrize("channels, tiles, whole", [(128, 256, True), (128, 2, False), (1280, 4, False)])
def test_the_table_that_ships_for_gathered_taps(channels, tiles, whole):
    with backends.forced("composed"):
        assert block_costs.whole_tiles_pay("cpu", {(channels, channels): 1}, (8, 8), tiles, 64 * tiles) is whole
