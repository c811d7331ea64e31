"""Fused operators on every backend: against float64, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from test_parity import active_rows, backend, dtype, random, tap_rows, unwritten_memory_is_nan  # noqa: F401

from sige.kernels import backends, ops
from sige.kernels.activations import ACTIVATIONS

BATCH, HEIGHT, WIDTH = 2, 9, 11
N = BATCH * HEIGHT * WIDTH
SLOPE = 0.2
MASKS = pytest.mark.parametrize("mask", ["ragged", "none"])


def call(operator, **given):
    """The operator on the device where the backend under test runs; results come back to the CPU, and so does what it wrote."""
    device = "cuda" if backends._forced == "triton" and torch.cuda.is_available() else "cpu"
    device = "mps" if backends._forced == "mps" and torch.backends.mps.is_available() else device
    moved = {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in given.items()}
    result = getattr(ops, operator)(**moved)
    for name in ("target", "sums"):
        if device != "cpu" and given.get(name) is not None:
            given[name].copy_(moved[name])
    return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()


def close(got, exact):
    """Agreement to the precision of ``got``, of results that some backends round four times on the way; NaN never agrees."""
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[got.dtype]
    reach = exact.abs().max().item() if exact.numel() else 1
    return got.shape == exact.shape and bool(((got.double() - exact).abs() <= tolerance * reach).all())


def activated(values, activation):
    """The activation, written out."""
    if activation == "silu":
        return values / (1 + (-values).exp())
    if activation == "gelu":
        return values / 2 * (1 + torch.erf(values / 2**0.5))
    below = {"none": 1, "relu": 0, "leaky_relu": SLOPE}[activation]
    return torch.where(values < 0, below * values, values)


@MASKS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batched", [True, False], ids=["one map a sample", "one map"])
def test_activate_rows(dtype, mask, activation, batched):  # noqa: F811
    index = active_rows(mask)
    rows = random(len(index), 17, dtype=dtype)
    scale, shift = (random(BATCH if batched else 1, 17, dtype=dtype, seed=seed) for seed in (1, 2))
    sample = index // (HEIGHT * WIDTH) if batched else None
    pick = sample if batched else torch.zeros_like(index)
    exact = activated(rows.double() * scale.double()[pick] + shift.double()[pick], activation)
    got = call("activate_rows", rows=rows, scale=scale, shift=shift, sample=sample, activation=activation, slope=SLOPE)
    assert (got.dtype, close(got, exact)) == (dtype, True)


def untouched(target, before, index):
    """Whether no row of ``target`` but those of ``index`` is another than ``before``."""
    others = torch.ones(len(target), dtype=torch.bool).index_fill(0, index, False)
    return torch.equal(target[others], before[others])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_alone(dtype, activation):  # noqa: F811
    rows = random(50, 21, dtype=dtype)
    got = call("activate_rows", rows=rows, activation=activation, slope=SLOPE)
    assert (got.dtype, close(got, activated(rows.double(), activation))) == (dtype, True)


@MASKS
@pytest.mark.parametrize("channels", [3, 24, 300])
def test_activate_rows_into_a_map(dtype, mask, channels):  # noqa: F811
    target, index = random(N, channels, dtype=dtype, seed=4), active_rows(mask)
    rows, before = random(len(index), channels, dtype=dtype), target.clone()
    scale, shift = (random(1, channels, dtype=dtype, seed=seed) for seed in (1, 2))
    given = dict(rows=rows, scale=scale, shift=shift, activation="silu", target=target, positions=index)
    old = call("activate_rows", **given)
    exact = activated(rows.double() * scale.double() + shift.double(), "silu")
    found = torch.equal(old, before[index]), close(target[index], exact), untouched(target, before, index)
    assert found == (True, True, True)


def in_two(rows, first, picked):
    """The columns of ``rows`` from ``first`` on, apart from the others: {"rest", "rest_rows"}, in a longer map where ``picked``."""
    if not picked:
        return rows[:, :first].clone(), dict(rest=rows[:, first:].clone())
    places = torch.randperm(len(rows) + 9, generator=torch.Generator().manual_seed(8))[: len(rows)]
    rest = torch.full((len(rows) + 9, rows.shape[1] - first), float("nan"), dtype=rows.dtype)
    rest[places] = rows[:, first:]
    return rows[:, :first].clone(), dict(rest=rest, rest_rows=places)


PICKED = pytest.mark.parametrize("picked", [False, True], ids=["rows", "rows of a map"])


@PICKED
@pytest.mark.parametrize("first, channels", [(3, 24), (200, 300)])
def test_activate_rows_of_two_tensors(dtype, picked, first, channels):  # noqa: F811
    target, index = random(N, channels, dtype=dtype, seed=4), active_rows("ragged")
    whole, before = random(len(index), channels, dtype=dtype), target.clone()
    scale, shift = (random(1, channels, dtype=dtype, seed=seed) for seed in (1, 2))
    rows, rest = in_two(whole, first, picked)
    given = dict(rows=rows, scale=scale, shift=shift, activation="silu", **rest)
    exact = activated(whole.double() * scale.double() + shift.double(), "silu")
    alone = call("activate_rows", **given)
    old = call("activate_rows", **given, target=target, positions=index)
    found = close(alone, exact), torch.equal(old, before[index]), close(target[index], exact)
    assert (*found, untouched(target, before, index)) == (True,) * 4


def test_rows_of_two_tensors_to_which_nothing_is_done(dtype):  # noqa: F811
    whole = random(50, 24, dtype=dtype)
    rows, rest = in_two(whole, 10, True)
    assert torch.equal(call("activate_rows", rows=rows, **rest), whole)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu"])
def test_what_is_not_a_number_stays_so(activation):
    rows, one = torch.tensor([[float("nan"), 1.0]]), torch.ones(1, 2)
    got = call("activate_rows", rows=rows, scale=one, shift=one, activation=activation)
    assert got.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("operator", ["activate_rows", "conv_rows_fused"])
def test_an_unknown_activation_is_refused(operator):
    rows = torch.ones(2, 2)
    given = dict(rows=rows, scale=rows, shift=rows) if operator == "activate_rows" else dict(source=rows, index=None)
    given |= {} if operator == "activate_rows" else dict(weight=rows)
    message = "^unknown activation 'tanh': choose one of none, silu, relu, leaky_relu, gelu$"
    with pytest.raises(ValueError, match=message):
        getattr(ops, operator)(**given, activation="tanh")


class Case:
    """Operands of a fused convolution (``kernel`` 0: a linear layer) at the positions of ``mask`` and three of overhang, and the exact
    results (float64). ``wants`` names what follows the convolution."""

    def __init__(self, dtype, mask, geometry, wants, activation="silu"):  # noqa: F811
        channels, outputs, kernel, groups = geometry
        self.places = places = active_rows(mask)
        sample = places // (HEIGHT * WIDTH)
        vector = random(BATCH if "vectors" in wants else 1, outputs, dtype=dtype, seed=3)
        residual = random(N + 7 if "rows of a residual" in wants else len(places), outputs, dtype=dtype, seed=4)
        residual_rows = places.flip(0) + 3 if "rows of a residual" in wants else None
        scale, shift = (random(BATCH, outputs, dtype=dtype, seed=seed) for seed in (5, 6))
        bias = random(outputs, dtype=dtype, seed=2)
        if kernel:
            source = random(N, channels, dtype=dtype)
            weight = random(outputs, channels // groups, kernel, kernel, dtype=dtype, seed=1)
            taps, _ = tap_rows(kernel, 1, kernel // 2, 1)
            index = torch.cat([taps[places], taps[:3]])
            image = source.double().view(BATCH, HEIGHT, WIDTH, channels).permute(0, 3, 1, 2)
            raw = F.conv2d(image, weight.double(), bias.double(), padding=kernel // 2, groups=groups)
            raw = raw.permute(0, 2, 3, 1).reshape(N, outputs)[places]
        else:
            picked = "picked" in wants
            source = random(N if picked else len(places), channels, dtype=dtype)
            index = torch.cat([places, places[:3]]) if picked else None
            weight = random(outputs, channels, dtype=dtype, seed=1)
            raw = (source[places] if picked else source).double() @ weight.double().t() + bias.double()
            weight = weight[:, :, None, None] if "1x1" in wants else weight
        raw = raw + (vector.double()[sample] if "vectors" in wants else vector.double() if "vector" in wants else 0)
        added = residual if residual_rows is None else residual[residual_rows]
        self.raw = raw + (added.double() if "residual" in wants else 0)
        self.second = self.raw
        if "norm" in wants:
            self.second = activated(self.raw * scale.double()[sample] + shift.double()[sample], activation)
        self.target = random(N, outputs, dtype=dtype, seed=7) if "target" in wants else None
        self.given = dict(source=source, index=index, weight=weight, bias=bias, groups=groups, count=len(places))
        self.given.update(vector=vector if wants & {"vector", "vectors"} else None, sample=sample)
        if "residual" in wants:
            self.given.update(residual=residual, residual_rows=residual_rows)
        if "norm" in wants:
            self.given.update(scale=scale, shift=shift, activation=activation, slope=SLOPE)
        if "target" in wants:
            self.given.update(target=self.target, positions=places)


GEOMETRIES = pytest.mark.parametrize(
    "geometry",
    [
        pytest.param((3, 17, 3, 1), id="3x3"),
        pytest.param((72, 24, 3, 1), id="3x3 of many channels"),
        pytest.param((34, 48, 3, 2), id="3x3 groups 2"),
        pytest.param((83, 83, 3, 83), id="depthwise"),
        pytest.param((40, 24, 0, 1), id="linear"),
        pytest.param((640, 24, 0, 1), id="linear split"),
    ],
)
WANTS = pytest.mark.parametrize(
    "wants",
    [
        pytest.param(set(), id="nothing"),
        pytest.param({"vector"}, id="vector"),
        pytest.param({"vectors", "residual"}, id="vector a sample and residual"),
        pytest.param({"norm"}, id="norm"),
        pytest.param({"vector", "residual", "norm"}, id="all but a map"),
        pytest.param({"vectors", "residual", "norm", "target"}, id="all"),
        pytest.param({"vectors", "residual", "rows of a residual", "norm", "target"}, id="all, rows of a residual"),
        pytest.param({"target"}, id="map alone"),
    ],
)


@GEOMETRIES
def test_no_rows_are_no_error(geometry):
    case = Case(torch.float32, "none", geometry, {"vectors", "residual", "norm", "target"})
    before = case.target.clone()
    shapes = [part.shape for part in call("conv_rows_fused", **case.given)]
    assert (shapes, torch.equal(case.target, before)) == ([(0, before.shape[1])] * 2, True)


@GEOMETRIES
@WANTS
def test_conv_rows_fused(dtype, geometry, wants):  # noqa: F811
    case = Case(dtype, "ragged", geometry, wants)
    before = None if case.target is None else case.target.clone()
    raw, second = call("conv_rows_fused", **case.given)
    assert (raw.dtype, close(raw, case.raw)) == (dtype, True)
    if before is not None:
        found = torch.equal(second, before[case.places]), close(case.target[case.places], case.second)
        assert (*found, untouched(case.target, before, case.places)) == (True, True, True)
    elif "norm" in wants:
        assert close(second, case.second)
    else:
        assert second.shape == (0, raw.shape[1])


@pytest.mark.parametrize("channels", [40, 640])
@pytest.mark.parametrize("wants", [set(), {"1x1", "vectors", "residual", "norm", "target"}], ids=["alone", "1x1, all"])
def test_a_linear_layer_of_picked_rows(dtype, wants, channels):  # noqa: F811
    case = Case(dtype, "ragged", (channels, 24, 0, 1), {"picked", *wants})
    raw, _ = call("conv_rows_fused", **case.given)
    assert (close(raw, case.raw), not wants or close(case.target[case.places], case.second)) == (True, True)


@pytest.mark.parametrize(
    "geometry, wants, first",
    [
        pytest.param((40, 24, 0, 1), set(), 24, id="linear"),
        pytest.param((40, 24, 0, 1), {"picked", "residual", "norm", "target"}, 7, id="linear of picked rows, all"),
        pytest.param((640, 24, 0, 1), {"1x1", "picked"}, 320, id="linear split"),
        pytest.param((640, 24, 0, 1), {"vector"}, 333, id="linear split anywhere"),
        pytest.param((3, 17, 3, 1), set(), 1, id="3x3"),
        pytest.param((72, 24, 3, 1), {"norm"}, 40, id="3x3 of many channels"),
    ],
)
def test_channels_of_two_tensors(dtype, geometry, wants, first):  # noqa: F811
    case = Case(dtype, "ragged", geometry, wants)
    source, rest = in_two(case.given["source"], first, picked=geometry[2] == 0)
    raw, second = call("conv_rows_fused", **case.given | dict(source=source, **rest))
    made = case.target[case.places] if "target" in wants else second
    assert (raw.dtype, close(raw, case.raw)) == (dtype, True)
    assert "norm" not in wants or close(made, case.second)


@pytest.mark.parametrize("wants", [{"norm"}, {"norm", "target"}, {"target"}], ids=["norm", "norm in a map", "map"])
def test_raw_rows_that_nobody_wants_are_not_there(wants):
    case = Case(torch.float32, "ragged", (24, 17, 3, 1), wants)
    raw, second = call("conv_rows_fused", **case.given, raw=False)
    written = case.target[case.places] if "target" in wants else second
    assert (raw.shape, close(written, case.second)) == ((0, 17), True)


def test_a_map_remembered_in_another_dtype_keeps_it():
    case = Case(torch.float32, "ragged", (24, 17, 3, 1), {"residual", "norm", "target"})
    case.target = case.given["target"] = case.target.bfloat16()
    before = case.target.clone()
    raw, old = call("conv_rows_fused", **case.given)
    found = old.dtype, raw.dtype, torch.equal(old, before[case.places]), close(case.target[case.places], case.second)
    assert found == (torch.bfloat16, torch.float32, True, True)


@pytest.mark.parametrize("raw", [True, False], ids=["raw rows too", "activated alone"])
def test_an_activation_without_a_norm(raw):
    case = Case(torch.float32, "ragged", (24, 17, 3, 1), set())
    plain, second = call("conv_rows_fused", **case.given, activation="relu", raw=raw)
    assert close(second, case.raw.clamp(min=0)) and (not raw or close(plain, case.raw))
