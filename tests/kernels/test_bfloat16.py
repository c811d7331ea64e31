"""Compiled products of bfloat16, where the CPU multiplies tiles of it: against float64, and what each output depends on."""

import pytest
import torch

from sige.kernels import backends, ops, tap_rows
from sige.kernels.cpu import library, product

SHAPES = {  # channels, outputs, side of the maps, share of the positions
    "whole tiles": (64, 32, 20, 0.4),
    "filled up": (40, 50, 11, 0.7),
    "odd channels": (33, 20, 9, 0.5),
    "one vector of outputs": (34, 10, 9, 1.0),
    "few channels": (4, 33, 13, 0.5),
    "rows apart": (128, 48, 30, 0.6),
    "rows apart, taps in parts": (1024, 33, 12, 0.6),
    "rows together in passes, taps in parts": (1024, 256, 16, 0.9),
    "one position": (64, 70, 9, 0.0),
}


@pytest.fixture(autouse=True)
def compiled():
    if library.library() is None or library.library().multiplies_tiles() < 1:
        pytest.skip("this CPU does not multiply tiles of bfloat16, or there is no C++ compiler")
    with backends.forced("cpu"):
        yield


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def operands(channels, outputs, side, share):
    """Two maps' rows, the taps of some of their positions, a weight and a bias."""
    index, _ = tap_rows.of_map(2, side, side, (3, 3), (1, 1), (1, 1), (1, 1))
    wanted = torch.rand(len(index), generator=torch.Generator().manual_seed(5)) < share
    wanted[side // 2] = True
    return (
        random(2 * side**2, channels),
        index[wanted],
        random(outputs, channels, 3, 3, seed=1),
        random(outputs, seed=2),
    )


def exact(source, index, weight, bias):
    taps = torch.cat([source, source.new_zeros(1, source.shape[1])])[index].double()
    return torch.einsum("ntc,oct->no", taps, weight.double().flatten(2)) + bias.double()


def close(got, exact):
    """Each result is the exact one, rounded once: to half of its last digit, and what summing in float32 leaves."""
    allowed = exact.abs() * 2**-8 + exact.abs().max() * 1e-5
    return bool(((got.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_convolution_against_float64(shape):
    given = operands(*shape)
    assert close(ops.conv_rows(*given), exact(*given))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 300])
@pytest.mark.parametrize("channels, outputs", [(320, 64), (48, 17)], ids=["whole tiles", "filled up"])
def test_a_linear_layer_against_float64(channels, outputs, rows):
    source, weight, bias = random(rows, channels), random(outputs, channels, seed=1), random(outputs, seed=2)
    assert close(ops.linear_rows(source, weight, bias), source.double() @ weight.double().t() + bias.double())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", ["rows apart", "rows apart, taps in parts"])
def test_the_number_of_threads_changes_no_bit(shape, threads):
    given, before = operands(*SHAPES[shape]), torch.get_num_threads()
    once = ops.conv_rows(*given)
    try:
        torch.set_num_threads(threads)
        again = ops.conv_rows(*given)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(once, again)


def test_an_output_depends_on_no_row_but_those_of_its_taps():
    source, index, weight, bias = operands(64, 40, 12, 0.6)
    read = torch.unique(index[:20])
    other = torch.full_like(source, float("nan"))
    other[read[read >= 0]] = source[read[read >= 0]]
    made, again = ops.conv_rows(source, index, weight, bias), ops.conv_rows(other, index, weight, bias)
    assert torch.equal(made[:20], again[:20])


def test_numbers_that_are_none_stay_so():
    source, index, weight, bias = operands(64, 40, 12, 1.0)
    source[index[7][4]] = float("nan")
    assert bool(ops.conv_rows(source, index, weight, bias)[7].isnan().all())


@pytest.mark.parametrize(
    "rows, channels, outputs, taken", [(64, 512, 512, True), (64, 1280, 1280, False), (4096, 320, 320, False)]
)
def test_little_linear_layers_are_taken(rows, channels, outputs, taken):
    assert product.multiplied(rows, random(1, channels), random(outputs, channels)) == taken


def test_mixed_numbers_are_left_to_composed_products():
    source, weight = random(5, 64), random(32, 64, seed=1).float()
    assert not product.multiplied(5, source, weight)
