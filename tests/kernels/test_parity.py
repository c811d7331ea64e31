"""Every operator on every backend against a float64 computation written here, which knows nothing of the engine.

A backend whose package is not installed is left out. Triton's kernels run on the GPU where there is one, else in Triton's interpreter
(tests/conftest.py asks for it). Metal's run on Apple's GPU where there is one, else compiled as C++ (metal_shim).
Memory that an operator allocates holds NaN until it is written.
"""

import functools
import sys

import pytest
import torch
import torch.nn.functional as F

import sige  # noqa: F401
from sige.kernels import backends, ops

BATCH, HEIGHT, WIDTH = 2, 9, 11
DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, id="float16"),
    pytest.param(torch.bfloat16, id="bfloat16"),
]
MASKS = ["ragged", "one", "all", "none"]


def tested_backends():
    """Those that can be loaded here; Metal's also without a Mac, through the shim."""
    return list(dict.fromkeys([*backends.available(), *(["mps"] if sys.platform != "darwin" else [])]))


@pytest.fixture(params=tested_backends(), autouse=True)
def backend(request, monkeypatch):
    """Sends every operator to one backend, and fails where that leaves the call to another."""

    def declined(*args):
        raise AssertionError(args)

    monkeypatch.setattr(backends, "_say_once", declined)
    if request.param == "mps":
        request.getfixturevalue("metal")
    with backends.forced(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def call(operator, *args):
    """The operator on the device where the backend under test runs; results come back to the CPU, also those written in place."""
    device = "cuda" if backends._forced == "triton" and torch.cuda.is_available() else "cpu"
    device = "mps" if backends._forced == "mps" and torch.backends.mps.is_available() else device
    moved = [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in args]
    result = getattr(ops, operator)(*moved)
    if operator.endswith("_") and device != "cpu":
        args[0].copy_(moved[0])
    return (
        tuple(part.cpu() for part in result)
        if isinstance(result, tuple)
        else result
        if result is None
        else result.cpu()
    )


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=MASKS)
def mask(request):
    return request.param


def active_rows(kind, height=HEIGHT, width=WIDTH):
    """Flat row numbers of a batch of two: ``ragged`` touches every border, and differs between the samples."""
    mask = torch.full((BATCH, height, width), kind == "all")
    if kind == "one":
        mask[1, height // 2, width - 1] = True
    elif kind == "ragged":
        mask[0] = torch.rand(height, width, generator=torch.Generator().manual_seed(7)) > 0.7
        mask[0, 0, 0] = mask[0, -1, -1] = mask[0, 0, -1] = mask[0, -1, 0] = True
        mask[1, height // 2] = mask[1, :, width // 3] = True
    return mask.flatten().nonzero().flatten()


@functools.cache
def tap_rows(kernel, stride, padding, dilation):
    """(B*H'*W', k*k) row that each tap of each output position reads, -1 outside the map; and the output's (H', W')."""
    numbers = torch.arange(1, BATCH * HEIGHT * WIDTH + 1, dtype=torch.float64).view(BATCH, 1, HEIGHT, WIDTH)
    taps = F.unfold(numbers, kernel, dilation, padding, stride)
    out = [(side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in (HEIGHT, WIDTH)]
    return taps.permute(0, 2, 1).reshape(-1, kernel * kernel).long() - 1, out


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, exact):
    """Agreement to the precision of ``got``; NaN never agrees."""
    tolerance = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[got.dtype] * (
        exact.abs().max().item() if exact.numel() else 1
    )
    return got.shape == exact.shape and bool(((got.double() - exact).abs() <= tolerance).all())


GEOMETRIES = pytest.mark.parametrize(
    "channels, outputs, kernel, stride, padding, dilation, groups",
    [
        pytest.param(3, 17, 3, 1, 1, 1, 1, id="3x3"),
        pytest.param(24, 24, 3, 1, 1, 1, 1, id="3x3 prepacked"),
        pytest.param(17, 24, 3, 2, 1, 1, 1, id="3x3 stride 2"),
        pytest.param(24, 32, 3, 2, 0, 1, 1, id="3x3 stride 2 unpadded"),
        pytest.param(24, 17, 3, 1, 2, 2, 1, id="3x3 dilation 2"),
        pytest.param(3, 24, 5, 1, 2, 1, 1, id="5x5"),
        pytest.param(6, 12, 3, 1, 1, 1, 3, id="3x3 groups 3"),
        pytest.param(34, 48, 3, 1, 1, 1, 2, id="3x3 groups 2, wide"),
        pytest.param(17, 17, 3, 2, 2, 2, 17, id="depthwise stride 2 dilation 2"),
        pytest.param(72, 17, 1, 1, 0, 1, 1, id="1x1 prepacked"),
        pytest.param(3, 3, 1, 3, 0, 1, 1, id="1x1 stride 3"),
    ],
)
BIAS = pytest.mark.parametrize(
    "dtype, bias",
    [
        pytest.param(torch.float32, True, id="float32 bias"),
        pytest.param(torch.float32, False, id="float32 no bias"),
        pytest.param(torch.float16, True, id="float16 bias"),
        pytest.param(torch.bfloat16, True, id="bfloat16 bias"),
    ],
)


def operands(dtype, bias, channels, outputs, kernel, groups):
    """Rows of a map, and a convolution's weight and bias or None; the same at every call."""
    source = random(BATCH * HEIGHT * WIDTH, channels, dtype=dtype)
    weight = random(outputs, channels // groups, kernel, kernel, dtype=dtype, seed=1)
    return source, weight, random(outputs, dtype=dtype, seed=2) if bias else None


@functools.cache
def exact_map(dtype, bias, channels, outputs, kernel, groups, stride, padding, dilation, around=(0, 0, 0, 0)):
    """The convolution of the whole map of `operands` in float64, (B, O, H', W'), made once for all masks and backends.

    ``around`` is padding besides (left, right, top, bottom).
    """
    source, weight, offset = operands(dtype, bias, channels, outputs, kernel, groups)
    image = F.pad(source.double().view(BATCH, HEIGHT, WIDTH, channels).permute(0, 3, 1, 2), around)
    return F.conv2d(image, weight.double(), offset.double() if bias else None, stride, padding, dilation, groups)


@GEOMETRIES
@BIAS
def test_conv_rows(dtype, mask, channels, outputs, kernel, stride, padding, dilation, groups, bias):
    source, weight, offset = operands(dtype, bias, channels, outputs, kernel, groups)
    taps, out = tap_rows(kernel, stride, padding, dilation)
    places = active_rows(mask, *out)
    exact = exact_map(dtype, bias, channels, outputs, kernel, groups, stride, padding, dilation)
    exact = exact.permute(0, 2, 3, 1).reshape(-1, outputs)[places]
    got = call("conv_rows", source, taps[places], weight, offset, groups)
    assert (got.dtype, close(got, exact)) == (dtype, True)


@BIAS
@pytest.mark.parametrize("tile", [(1, 1), (4, 4), (2, 4)], ids=["1x1", "4x4", "2x4"])
@pytest.mark.parametrize(
    "channels, outputs, kernel, groups",
    [
        pytest.param(3, 17, 3, 1, id="3x3"),
        pytest.param(24, 24, 5, 1, id="5x5"),
        pytest.param(17, 3, 1, 1, id="1x1"),
        pytest.param(6, 12, 3, 3, id="3x3 groups 3"),
    ],
)
def test_conv_tiles(dtype, mask, channels, outputs, kernel, groups, tile, bias):
    source, weight, offset = operands(dtype, bias, channels, outputs, kernel, groups)
    # Tiles that cover the map and hang over its right and lower edge, each with its input window.
    before, after = kernel // 2, [-side % step + kernel // 2 for side, step in zip((HEIGHT, WIDTH), tile)]
    around = (before, after[1], before, after[0])
    numbers = torch.arange(1, len(source) + 1, dtype=torch.float64).view(BATCH, 1, HEIGHT, WIDTH)
    extent = [step + kernel - 1 for step in tile]
    windows = F.unfold(F.pad(numbers, around), extent, stride=tile).permute(0, 2, 1)
    places = active_rows(mask, -(-HEIGHT // tile[0]), -(-WIDTH // tile[1]))
    index = windows.reshape(-1, extent[0] * extent[1])[places].long() - 1
    exact = exact_map(dtype, bias, channels, outputs, kernel, groups, 1, 0, 1, around)
    exact = exact.unfold(2, tile[0], tile[0]).unfold(3, tile[1], tile[1]).permute(0, 2, 3, 4, 5, 1)
    exact = exact.reshape(-1, tile[0] * tile[1], outputs)
    got = call("conv_tiles", source, index, tile, weight, offset, groups)
    assert (got.dtype, close(got, exact[places].reshape(-1, outputs))) == (dtype, True)


@GEOMETRIES
@BIAS
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_conv_map(dtype, layout, channels, outputs, kernel, stride, padding, dilation, groups, bias):
    source, weight, offset = operands(dtype, bias, channels, outputs, kernel, groups)
    image = source.view(BATCH, HEIGHT, WIDTH, channels).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    exact = exact_map(dtype, bias, channels, outputs, kernel, groups, stride, padding, dilation)
    got = call("conv_map", image, weight, offset, (stride, stride), (padding, padding), (dilation, dilation), groups)
    assert (got.dtype, close(got, exact), got.is_contiguous(memory_format=torch.channels_last)) == (dtype, True, True)


@pytest.mark.parametrize("channels, outputs", [(3, 17), (24, 24), (72, 17), (128, 64)])
@BIAS
def test_linear_rows(dtype, mask, channels, outputs, bias):
    rows = random(len(active_rows(mask)), channels, dtype=dtype)
    weight, offset = (
        random(outputs, channels, dtype=dtype, seed=1),
        random(outputs, dtype=dtype, seed=2) if bias else None,
    )
    exact = rows.double() @ weight.double().t() + (offset.double() if bias else 0)
    assert close(call("linear_rows", rows, weight, offset), exact)


def test_linear_rows_that_are_not_contiguous(dtype):
    rows, weight = random(72, 20, dtype=dtype).t(), random(17, 72, dtype=dtype, seed=1)
    assert close(call("linear_rows", rows, weight, None), rows.double() @ weight.double().t())


def test_convolution_of_a_map_remembered_in_bfloat16():
    source, weight = (
        random(BATCH * HEIGHT * WIDTH, 24, dtype=torch.bfloat16),
        random(17, 24, 3, 3, dtype=torch.float32, seed=1),
    )
    taps, _ = tap_rows(3, 1, 1, 1)
    got = call("conv_rows", source, taps, weight, None)
    exact = F.conv2d(source.double().view(BATCH, HEIGHT, WIDTH, 24).permute(0, 3, 1, 2), weight.double(), padding=1)
    assert (got.dtype, close(got, exact.permute(0, 2, 3, 1).reshape(-1, 17))) == (torch.float32, True)


@pytest.mark.parametrize("channels", [3, 17, 24])
def test_gather_rows(dtype, mask, channels):
    source, index = random(BATCH * HEIGHT * WIDTH, channels, dtype=dtype), active_rows(mask)
    assert torch.equal(
        call("gather_rows", source, index), torch.stack([source[i] for i in index]) if len(index) else source[:0]
    )


@pytest.mark.parametrize("channels", [3, 17, 24])
@pytest.mark.parametrize("rows_dtype", DTYPES)
def test_scatter_rows_writes_the_named_rows_and_no_other(backend, dtype, mask, channels, rows_dtype):
    target, index = torch.full((BATCH * HEIGHT * WIDTH, channels), float("nan"), dtype=dtype), active_rows(mask)
    rows = random(len(index), channels, dtype=rows_dtype)
    call("scatter_rows_", target, index, rows)
    untouched = torch.ones(len(target), dtype=torch.bool)
    untouched[index] = False
    written = rows.to(dtype)
    if (backend, dtype) == ("triton", torch.bfloat16) and backends.interpreting():
        # Triton's interpreter cuts bfloat16 off where GPUs round to the nearest.
        written = (rows.float().view(torch.int32) & -65536).view(torch.float32).to(dtype)
    assert (torch.equal(target[index], written), bool(target[untouched].isnan().all())) == (True, True)


@pytest.mark.parametrize("channels", [3, 17, 24])
def test_exchange_rows_gives_what_was_there_and_writes_like_scatter(dtype, mask, channels):
    target, index = random(BATCH * HEIGHT * WIDTH, channels, dtype=dtype), active_rows(mask)
    rows, before = random(len(index), channels, dtype=dtype, seed=1), target.clone()
    old = call("exchange_rows_", target, index, rows)
    expected = before.clone()
    expected[index] = rows
    assert (torch.equal(old, before[index]), torch.equal(target, expected)) == (True, True)


def test_exchange_rows_keeps_the_maps_dtype(backend):
    target, rows = random(9, 24, dtype=torch.float16), random(2, 24, dtype=torch.float32, seed=1)
    before, index = target.clone(), torch.tensor([7, 2])
    old = call("exchange_rows_", target, index, rows)
    assert (old.dtype, torch.equal(old, before[index]), torch.equal(target[index], rows.half())) == (
        torch.float16,
        True,
        True,
    )


@pytest.mark.parametrize("channels", [3, 17, 24])
@pytest.mark.parametrize("batched", [True, False], ids=["one map a sample", "one map"])
def test_affine_rows(dtype, mask, channels, batched):
    index = active_rows(mask)
    rows = random(len(index), channels, dtype=dtype)
    scale, shift = (random(BATCH if batched else 1, channels, dtype=dtype, seed=seed) for seed in (1, 2))
    sample = index // (HEIGHT * WIDTH)
    pick = sample if batched else torch.zeros_like(sample)
    exact = rows.double() * scale.double()[pick] + shift.double()[pick]
    got = call("affine_rows", rows, scale, shift, sample if batched else None)
    assert (got.dtype, close(got, exact)) == (dtype, True)


@pytest.mark.parametrize("tiles", [0, 1, 7], ids=["no tile", "one tile", "seven tiles"])
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("channels, groups", [(3, 1), (17, 17), (24, 8)])
def test_tile_moments(dtype, tiles, side, channels, groups):
    rows = random(tiles * side**2, channels, dtype=dtype) + 3
    values = rows.double().view(tiles, side**2, groups, channels // groups)
    mean = values.mean((1, 3))
    squares = (values - mean[:, None, :, None]).square().sum((1, 3))
    got = call("tile_moments", rows, tiles, groups)
    assert [moment.dtype for moment in got] == [torch.float32] * 2
    assert (close(got[0], mean), bool(((got[1].double() - squares).abs() <= 1e-4 * (1 + squares)).all())) == (
        True,
        True,
    )


@pytest.mark.parametrize("spare", [0, 1, 700], ids=["filled", "one place left", "longer than the mask"])
def test_compact_lists_the_active_rows_and_fills_up(mask, spare):
    active = active_rows(mask)
    edit = torch.zeros(BATCH * HEIGHT * WIDTH, dtype=torch.bool).index_fill(0, active, True)
    capacity = max(1, len(active) + spare)
    rows, count = call("compact", edit.view(BATCH, HEIGHT, WIDTH), capacity)
    listed = active.tolist() + [-1] * (capacity - len(active))
    assert (rows.dtype, rows.tolist(), count.dtype, count.tolist()) == (torch.int64, listed, torch.int32, [len(active)])


@pytest.mark.parametrize("short", [1, 30])
def test_compact_lists_nothing_of_a_mask_that_does_not_fit(short):
    active = active_rows("ragged")
    edit = torch.zeros(BATCH * HEIGHT * WIDTH, dtype=torch.bool).index_fill(0, active, True)
    rows, count = call("compact", edit.view(BATCH, HEIGHT, WIDTH), len(active) - short)
    assert (set(rows.tolist()), count.tolist()) == ({-1}, [len(active)])


def test_compact_reads_a_mask_that_is_not_contiguous():
    edit = torch.zeros(BATCH, WIDTH, HEIGHT, dtype=torch.bool)
    edit[1, 3, 2] = True
    rows, _ = call("compact", edit.transpose(1, 2), 2)
    assert rows.tolist() == [(HEIGHT + 2) * WIDTH + 3, -1]
