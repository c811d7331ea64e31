"""On a CPU fused operators give the bits of the operators one by one, whatever of them is compiled."""

import pytest
import torch
from test_fused import SLOPE, Case

from sige.kernels import backends, ops
from sige.kernels.activations import ACTIVATIONS


def one_by_one(case, activation):
    """The raw rows of a case and the activated ones, by an operator each."""
    given = case.given
    product = [given[name] for name in ("source", "index", "weight", "bias")]
    residual = given["residual"] if given["residual_rows"] is None else given["residual"][given["residual_rows"]]
    made = (
        ops.linear_rows(*product[::2], product[3])
        if given["index"] is None
        else ops.conv_rows(*product, given["groups"])
    )
    made = made[: len(case.places)] + given["vector"][given["sample"]] + residual
    second = ops.affine_rows(made, given["scale"], given["shift"], given["sample"])
    return made, ops.activate_rows(second, activation=activation, slope=SLOPE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel, groups", [(3, 1), (3, 2), (0, 1)], ids=["3x3", "3x3 groups 2", "linear"])
@pytest.mark.parametrize("number", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "half", "bfloat"])
@pytest.mark.parametrize("map_number", [None, torch.bfloat16], ids=["", "map in bfloat"])
@pytest.mark.parametrize("rows", [set(), {"rows of a residual"}], ids=["", "rows of a residual"])
@pytest.mark.parametrize("backend", ["composed", "cpu"])
def test_the_bits_are_those_of_the_operators_one_by_one(backend, rows, map_number, number, kernel, groups, activation):
    with backends.forced(backend):
        case = Case(
            number, "ragged", (24, 32, kernel, groups), {"vectors", "residual", "norm", "target", *rows}, activation
        )
        if map_number is not None:
            case.given["target"] = case.target = case.target.to(map_number)
        made, second = one_by_one(case, activation)
        raw, _ = ops.conv_rows_fused(**case.given)
    assert (torch.equal(raw, made), torch.equal(case.target[case.places], second.to(case.target.dtype))) == (True, True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [0, 8], ids=["no norm", "norm"])
@pytest.mark.parametrize("outputs", [3, 32])
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16], ids=["float32", "bfloat"])
@pytest.mark.parametrize("backend", ["composed", "cpu"])
def test_the_bits_of_a_map_are_those_of_the_operators_one_by_one(backend, number, outputs, groups, activation):
    image, weight, bias, norm_weight, norm_bias = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(number)
        for seed, shape in enumerate([(2, 24, 20, 30), (outputs, 24, 3, 3), (outputs,), (24,), (24,)])
    )
    given = bias, (1, 1), (1, 1), (1, 1), 1
    with backends.forced(backend):
        fused = ops.conv_map_fused(image, weight, *given, groups, norm_weight, norm_bias, 1e-5, activation, SLOPE)
        made = ops.normalize_map(image, groups, norm_weight, norm_bias) if groups else image
        apart = ops.conv_map(ops.normalize_map(made, 0, activation=activation, slope=SLOPE), weight, *given)
    assert torch.equal(fused, apart)
