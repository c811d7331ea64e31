"""Compiled 3x3 convolutions that make four neighbouring outputs at a time: against float64, and what each output depends on."""

import pytest
import torch
import torch.nn.functional as F

from sige.kernels import backends, ops, tap_rows
from sige.kernels.cpu import library, winograd

pytestmark = pytest.mark.skipif(library.library() is None, reason="the compiled kernels need a C++ compiler")
SHAPES = pytest.mark.parametrize(
    "channels, outputs, side",
    [
        pytest.param(32, 32, 48, id="caches of threads"),
        pytest.param(300, 64, 48, id="shared cache, in passes"),
        pytest.param(41, 39, 11, id="odd channels"),
        pytest.param(33, 49, 10, id="panel of one vector"),
    ],
)
MASKS = ["blob", "ragged", "all"]


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Every convolution that can be taken four outputs at a time is."""
    monkeypatch.setattr(winograd, "LEAST", 1)
    monkeypatch.setattr(winograd, "OVERHEAD", 0.01)
    with backends.forced("cpu"):
        yield


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wanted(mask, side):
    """Flat positions in two maps, other ones in the second, that touch every border."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    chosen = torch.full((2, side, side), mask == "all")
    if mask == "blob":
        chosen[0] = (rows - side * 0.3) ** 2 + (columns - side * 0.4) ** 2 < side**2 * 0.2
        chosen[1] = (rows > side // 2) & (columns > side // 3)
    elif mask == "ragged":
        chosen = random(2, side, side, seed=5) > 0.3
    return chosen.flatten().nonzero().flatten()


def taps(side, enlarged, dilation=1):
    """(2*side*side, 9) rows that the taps of two maps read, of maps of half the side where those are enlarged."""
    index, _ = tap_rows.of_map(2, side, side, (3, 3), (1, 1), (dilation, dilation), (dilation, dilation))
    if not enlarged:
        return index
    half = torch.arange(2 * (side // 2) ** 2).view(2, 1, side // 2, side // 2).float()
    row_of = F.interpolate(half, scale_factor=2).flatten().long()
    return torch.where(index < 0, index, row_of[index.clamp(min=0)])


def exact(source, weight, bias, side, enlarged, dilation=1):
    """The convolution of the two maps in float64, as rows."""
    half = side // 2 if enlarged else side
    image = source.double().view(2, half, half, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, scale_factor=2) if enlarged else image
    made = F.conv2d(image, weight.double(), bias.double(), padding=dilation, dilation=dilation)
    return made.permute(0, 2, 3, 1).reshape(-1, len(weight))


def operands(channels, outputs, side, enlarged):
    source = random(2 * (side // 2 if enlarged else side) ** 2, channels)
    return source, random(outputs, channels, 3, 3, seed=1), random(outputs, seed=2)


def error(got, exact):
    return ((got - exact).norm() / exact.norm()).item()


@SHAPES
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("enlarged", [False, True], ids=["", "enlarged"])
def test_against_float64(channels, outputs, side, mask, enlarged):
    side -= side % 2 if enlarged else 0
    (source, weight, bias), places = operands(channels, outputs, side, enlarged), wanted(mask, side)
    index = taps(side, enlarged)[places]
    got = ops.conv_rows(source, index, weight, bias)
    found = winograd.quads(index, len(index), len(source), weight)[0]
    assert (found, error(got, exact(source, weight, bias, side, enlarged)[places]) < 6e-7) == (
        3 if enlarged else 4,
        True,
    )


@pytest.mark.parametrize("enlarged", [False, True], ids=["", "enlarged"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_output_is_in_one_quad(mask, enlarged):
    index = taps(12, enlarged)[wanted(mask, 12)]
    _, _, members = winograd.quads(index, len(index), 2 * 12 * 12, random(32, 32, 3, 3))
    assert sorted(members[members >= 0].tolist()) == list(range(len(index)))


def test_a_whole_map_fills_its_quads():
    _, windows, _ = winograd.quads(taps(12, False), 2 * 12 * 12, 2 * 12 * 12, random(32, 32, 3, 3))
    assert len(windows) == 2 * 12 * 12 // 4


def test_dilated_taps():
    (source, weight, bias), places = operands(32, 32, 16, False), wanted("blob", 16)
    index = taps(16, False, dilation=2)[places]
    got = ops.conv_rows(source, index, weight, bias)
    _, _, members = winograd.quads(index, len(index), len(source), weight)
    full = bool((members >= 0).all(1).any())
    assert (full, error(got, exact(source, weight, bias, 16, False, dilation=2)[places]) < 6e-7) == (True, True)


@pytest.mark.parametrize("enlarged", [False, True], ids=["", "enlarged"])
@pytest.mark.parametrize("mask", ["blob", "ragged"])
def test_what_no_tap_reads_has_no_part(mask, enlarged):
    source, weight, bias = operands(32, 32, 16, enlarged)
    index = taps(16, enlarged)[wanted(mask, 16)]
    before = ops.conv_rows(source, index, weight, bias)
    unread = torch.ones(len(source), dtype=torch.bool)
    unread[index[index >= 0]] = False
    source[unread] = float("nan")
    assert torch.equal(ops.conv_rows(source, index, weight, bias), before)


@pytest.mark.parametrize("count", [0, 1, 37])
def test_the_first_outputs_are_the_same_alone(count):
    source, weight, bias = operands(32, 40, 16, False)
    index = taps(16, False)[wanted("blob", 16)]
    some, _ = ops.conv_rows_fused(source, index, weight, bias, 1, count)
    assert torch.equal(some, ops.conv_rows(source, index, weight, bias)[:count])


def test_the_end_of_a_product_has_the_bits_of_the_operators_one_by_one():
    source, weight, bias = operands(32, 40, 16, False)
    places = wanted("ragged", 16)
    index, sample = taps(16, False)[places], places // 256
    vector, scale, shift = random(2, 40, seed=3), random(2, 40, seed=4), random(2, 40, seed=5)
    residual, target = random(len(index), 40, seed=6), random(512, 40, seed=7)
    made = ops.conv_rows(source, index, weight, bias) + vector[sample] + residual
    second = ops.activate_rows(made, scale, shift, sample, "silu")
    held = target[places]
    after = dict(vector=vector, residual=residual, sample=sample, scale=scale, shift=shift, activation="silu")
    raw, old = ops.conv_rows_fused(source, index, weight, bias, **after, target=target, positions=places)
    assert (torch.equal(raw, made), torch.equal(old, held), torch.equal(target[places], second)) == (True, True, True)


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (64, 70)], ids=["few", "odd sides", "some"])
def test_whole_maps(size):
    image, weight, bias = random(2, 32, *size), random(48, 32, 3, 3, seed=1), random(48, seed=2)
    got = ops.conv_map(image, weight, bias, (1, 1), (1, 1))
    expected = F.conv2d(image.double(), weight.double(), bias.double(), padding=1)
    taken = winograd.quads_of_map(image, weight, *((1, 1),) * 3) is not None
    assert (taken, error(got, expected) < 6e-7) == (True, True)


def test_the_quads_of_a_map_are_those_that_its_row_numbers_give():
    index = tap_rows.of_map(2, 12, 14, (3, 3), (1, 1), (1, 1), (1, 1))[0]
    weight = random(32, 32, 3, 3)
    side, windows, members = winograd.quads(index, len(index), len(index), weight)
    whole = winograd.quads_of_map(random(2, 32, 12, 14), weight, *((1, 1),) * 3)
    assert (side, torch.equal(windows, whole[1]), torch.equal(members, whole[2])) == (whole[0], True, True)


@pytest.mark.parametrize(
    "stride, padding, dilation",
    [(2, 1, 1), (1, 0, 1), (1, 2, 2)],
    ids=["stride 2", "no padding", "dilation 2"],
)
def test_maps_of_other_geometries_are_left_alone(stride, padding, dilation):
    image, weight = random(1, 32, 20, 20), random(48, 32, 3, 3, seed=1)
    pairs = [(side, side) for side in (stride, padding, dilation)]
    expected = F.conv2d(image.double(), weight.double(), None, stride, padding, dilation)
    got = ops.conv_map(image, weight, None, *pairs)
    assert (winograd.quads_of_map(image, weight, *pairs), error(got, expected) < 1e-6) == (None, True)


def chosen(index, rows, monkeypatch, channels=64):
    monkeypatch.undo()
    return winograd.quads(index, len(index), rows, random(channels, channels, 3, 3)) is not None


@pytest.mark.parametrize(
    "places, channels, taken",
    [
        pytest.param(torch.arange(1024), 64, True, id="a whole map"),
        pytest.param(torch.arange(0, 1024, 3), 64, False, id="positions apart"),
        pytest.param(torch.arange(100), 64, False, id="few positions"),
        pytest.param(torch.arange(1024), 16, False, id="few channels"),
    ],
)
def test_taken_where_it_saves(places, channels, taken, monkeypatch):
    index = tap_rows.of_map(1, 32, 32, (3, 3), (1, 1), (1, 1), (1, 1))[0][places]
    assert chosen(index, 1024, monkeypatch, channels) == taken


@pytest.mark.parametrize("stride, kernel", [(2, 3), (1, 1)], ids=["stride 2", "1x1"])
def test_other_convolutions_are_left_alone(stride, kernel, monkeypatch):
    index, _ = tap_rows.of_map(1, 64, 64, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))
    monkeypatch.undo()
    assert winograd.quads(index, len(index), 4096, random(64, 64, kernel, kernel)) is None
