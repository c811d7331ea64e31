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
from sige.kernels.cpu import library

BATCH, HEIGHT, WIDTH = 2, 9, 11
DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, id="float16"),
    pytest.param(torch.bfloat16, id="bfloat16"),
]
MASKS = ["ragged", "one", "all", "none"]


def backends_here():
    """Those that can be loaded here; Metal's also without a Mac, through the shim."""
    return list(dict.fromkeys([*backends.available(), *(["mps"] if sys.platform != "darwin" else [])]))


@pytest.fixture(params=backends_here(), autouse=True)
def backend(request, monkeypatch):
    """Sends every operator to one backend, and fails where that leaves the call to another."""

    def declined(*args):
        raise AssertionError(args)

    library.library()  # says why, where it cannot be built
    monkeypatch.setattr(backends, "say_once", declined)
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
    written = 1 if operator == "update_statistics_" else 0
    if operator.endswith("_") and device != "cpu":
        args[written].copy_(moved[written])
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
        pytest.param(83, 83, 3, 2, 2, 2, 83, id="depthwise stride 2 dilation 2"),
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


def test_linear_rows_with_the_weight_of_a_pointwise_convolution(dtype):
    rows, weight = random(20, 24, dtype=dtype), random(17, 24, 1, 1, dtype=dtype, seed=1)
    assert close(call("linear_rows", rows, weight, None), rows.double() @ weight.double().flatten(1).t())


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


GRID = 12  # tiles of a sample's map


def widest():
    """The dtype of totals on the backend under test."""
    return torch.float32 if backends._forced == "mps" else torch.float64


def sums_of(values, centre):
    """Sums of x - c and (x - c)^2 of tiles (T, P, groups, C/groups) with centres (T, groups), in float64: (T, 2*groups)."""
    apart = values.double() - centre.double()[:, None, :, None]
    return torch.cat([apart.sum((1, 3)), apart.square().sum((1, 3))], 1)


def edited_statistics(dtype, stored, tiles, side, channels, groups, affine, batch):
    """A map of which ``tiles`` tiles change, through the operator.

    Returns what it gave, the remembered sums before and after, the changed tiles, and in float64 what all of it should be.
    """
    shape = (batch * GRID, side**2, groups, channels // groups)
    before = random(*shape, dtype=dtype) * 0.5 + 3
    after, changed = before.clone(), torch.randperm(batch * GRID, generator=torch.Generator().manual_seed(4))[:tiles]
    changed = changed.sort().values
    after[changed] = random(tiles, *shape[1:], dtype=dtype, seed=1) + 2
    centre = before.float().view(batch, -1, *shape[2:]).mean((1, 3))
    middle = centre.repeat_interleave(GRID, 0)
    sums = sums_of(before, middle).to(stored)
    # What is remembered may be coarse; the totals fit it, so that only the operator's own errors show.
    totals = sums.double().view(batch, GRID, -1).sum(1)
    exact_sums = sums.double().index_copy(0, changed, sums_of(after, middle)[changed])
    exact = exact_sums.view(batch, GRID, -1).sum(1)
    weight, bias = (random(channels, dtype=dtype, seed=seed) if affine else None for seed in (2, 3))
    count, wide = GRID * side**2 * (channels // groups), widest()
    first, second = (exact / count).chunk(2, 1)
    mean, rstd = centre + first, (second - first.square() + 1e-5).rsqrt()
    mean, rstd = (part.repeat_interleave(channels // groups, 1) for part in (mean, rstd))
    scale = rstd * (weight.double() if affine else 1)
    shift = (bias.double() if affine else 0) - mean * scale
    kept, sample = sums.clone(), None if batch == 1 else changed // GRID
    rows = after[changed].reshape(-1, channels)
    given = (rows, sums, changed, centre.to(wide), totals.to(wide), sample, weight, bias, groups, count, 1e-5)
    return call("update_statistics_", *given), kept, sums, changed, (exact_sums, exact, scale, shift)


TILES = pytest.mark.parametrize("tiles", [0, 1, 7], ids=["no tile", "one tile", "seven tiles"])
STATISTICS = pytest.mark.parametrize("side, channels, groups", [(1, 24, 8), (2, 3, 1), (2, 17, 17), (4, 24, 8)])


@TILES
@STATISTICS
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
@pytest.mark.parametrize("batch", [1, 2])
def test_update_statistics(dtype, tiles, side, channels, groups, affine, batch):
    done = edited_statistics(dtype, torch.float32, tiles, side, channels, groups, affine, batch)
    (old, totals, scale, shift), kept, sums, changed, (exact_sums, exact, exact_scale, exact_shift) = done
    assert torch.equal(old, kept[changed])
    assert torch.allclose(sums.double(), exact_sums, rtol=1e-5, atol=1e-4)
    assert (totals.dtype, torch.allclose(totals.double(), exact, rtol=1e-6, atol=1e-4)) == (
        widest(),
        True,
    )
    assert (scale.dtype, close(scale, exact_scale), close(shift, exact_shift)) == (dtype, True, True)


@STATISTICS
@pytest.mark.parametrize("batch", [1, 2])
def test_update_statistics_writes_the_named_tiles_and_no_other(dtype, side, channels, groups, batch):
    done = edited_statistics(dtype, torch.bfloat16, 7, side, channels, groups, True, batch)
    (old, totals, *_), kept, sums, changed, (exact_sums, *_) = done
    others = torch.ones(len(sums), dtype=torch.bool).index_fill(0, changed, False)
    assert (old.dtype, torch.equal(old, kept[changed])) == (torch.bfloat16, True)
    assert torch.equal(sums[others], kept[others])
    # Triton's interpreter cuts bfloat16 off where GPUs round to the nearest.
    assert torch.allclose(sums.double(), exact_sums, rtol=2**-7, atol=1e-4)
    # The totals are those of what is remembered.
    assert torch.allclose(totals.double(), sums.double().view(batch, GRID, -1).sum(1), rtol=1e-6, atol=1e-4)


def test_update_statistics_takes_an_edit_back():
    """The tiles' old rows after the new ones leave the totals where they were, also about a mean that the edit moved far away."""
    tiles, channels, groups = 5, 24, 8
    before, after = (
        random(tiles * 4, channels, dtype=torch.float32),
        random(tiles * 4, channels, dtype=torch.float32) + 300,
    )
    wide, changed = widest(), torch.arange(tiles)
    centre, totals = torch.zeros(1, groups, dtype=wide), torch.full((1, 2 * groups), 144.0, dtype=wide)
    sums = sums_of(before.view(tiles, 4, groups, 3), torch.zeros(tiles, groups)).float()
    settings = (None, None, None, groups, 144, 1e-5)
    _, moved, *_ = call("update_statistics_", after, sums, changed, centre, totals, *settings)
    _, back, *_ = call("update_statistics_", before, sums, changed, centre, moved, *settings)
    assert float((moved - totals).abs().min()) > 1e3
    assert float((back - totals).abs().max()) < (1e-4 if wide is torch.float64 else 1)


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
