"""Metal's kernels beyond the operators' contract: strides, splits, declined calls, the choice of backend, and a whole session.

All of it runs on a CPU through the shim (metal_shim). What the shim itself notices is in test_metal_shim.py.
"""

import dataclasses
import hashlib
import importlib.resources
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.kernels import backends, ops
from sige.kernels.mps import convolution, gather, launch, normalization


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def launched(shimmed, monkeypatch):
    """Names of the kernels launched, in order; each launch does run."""
    names, run = [], launch.run
    monkeypatch.setattr(launch, "run", lambda file, kernel, *rest: names.append(kernel) or run(file, kernel, *rest))
    return names


# What is tested is what ships.


@pytest.mark.parametrize("file", launch.FILES)
def test_compiled_text_is_the_packaged_file(metal_shim, file):
    packaged = importlib.resources.files("sige.kernels.mps").joinpath(f"{file}.metal").read_bytes()
    mine = [text for text in metal_shim.texts() if text.endswith(packaged)]
    macros = [re.fullmatch(rb"(#define [\w]+ \w+\n)+", text.removesuffix(packaged)) is not None for text in mine]
    digests = {hashlib.sha256(text[-len(packaged) :]).hexdigest() for text in mine}
    assert (len(mine) > 2, all(macros), digests) == (True, True, {hashlib.sha256(packaged).hexdigest()})


def test_every_packaged_file_is_compiled():
    folder = importlib.resources.files("sige.kernels.mps")
    assert {path.name for path in folder.iterdir() if path.name.endswith(".metal")} == {
        f"{x}.metal" for x in launch.FILES
    }


@pytest.mark.parametrize("file", launch.FILES)
def test_arguments_are_numbered_as_they_are_passed(shim_module, file):
    found = shim_module.kernels(launch.source(file))
    numbers = {name: [n for _, what, n in parameters if what == "buffer"] for name, parameters in found.items()}
    assert found and all(given == list(range(len(given))) for given in numbers.values())


@pytest.mark.parametrize(
    "file, macro, value",
    [
        ("convolution", "TILE_ROWS", convolution._ROWS),
        ("convolution", "TILE_OUTPUTS", convolution._OUTPUTS),
        ("convolution", "TILE_DEPTH", convolution._DEPTH),
        ("convolution", "PRODUCT_THREADS", convolution._THREADS),
        ("statistics", "STATISTICS_THREADS", normalization._STATISTICS_THREADS),
    ],
)
def test_both_sides_agree_on_sizes(file, macro, value):
    assert re.search(rf"^#define {macro} (\d+)", launch.source(file), re.MULTILINE)[1] == str(value)


def test_a_set_of_types_is_compiled_once(metal_shim, shimmed, monkeypatch):
    compiled = []
    monkeypatch.setattr(launch, "compile_text", lambda text: compiled.append(text) or metal_shim.library(text))
    for _ in range(3):
        gather.gather_rows(random(5, 3), torch.tensor([4]))
    assert len(compiled) == 1


# Operands that are views.


def strided(rows, columns, seed=0):
    """A (rows, columns) view with gaps on every side, inside NaN."""
    whole = torch.full((2 * rows + 1, 3 * columns + 2), float("nan"))
    view = whole[1::2, 2::3]
    view.copy_(random(rows, columns, seed=seed))
    return view


def test_gather_from_a_view(shimmed):
    source, index = strided(9, 5), torch.tensor([8, 0, 3])
    assert torch.equal(gather.gather_rows(source, index), source[index])


@pytest.mark.parametrize("rows", [strided(3, 5, 1), random(3, 5)], ids=["view", "contiguous"])
def test_exchange_in_a_view(shimmed, rows):
    target, index = strided(9, 5), torch.tensor([8, 0, 3])
    before, expected = target.clone(), target.clone()
    expected[index] = rows
    old = gather.exchange_rows_(target, index, rows)
    assert (torch.equal(old, before[index]), torch.equal(target, expected)) == (True, True)


def test_exchange_skips_row_minus_one(shimmed):
    index, target = torch.tensor([-1, 2]), random(4, 8)
    before, rows = target.clone(), random(2, 8, seed=1)
    old = gather.exchange_rows_(target, index, rows)
    before_and_after = torch.equal(old[1], before[2]), torch.equal(target[2], rows[1])
    assert (old[0].tolist(), before_and_after, torch.equal(target[:2], before[:2])) == ([0] * 8, (True, True), True)


@pytest.mark.parametrize("rows", [strided(3, 5, 1), random(3, 5)], ids=["view", "contiguous"])
def test_scatter_into_a_view(shimmed, rows):
    target, index = strided(9, 5), torch.tensor([8, 0, 3])
    expected = target.clone()
    expected[index] = rows
    whole = target._base
    outside = int(whole.isnan().sum())
    gather.scatter_rows_(target, index, rows)
    assert (torch.equal(target, expected), int(whole.isnan().sum())) == (True, outside)


def test_convolution_of_a_view(shimmed):
    source, weight = strided(40, 24), random(17, 24, 1, 1, seed=1)
    got = convolution.conv_rows(source, torch.arange(39, -1, -1).view(40, 1), weight, None, 1)
    assert torch.allclose(got, source.flip(0) @ weight.flatten(1).t(), atol=1e-4)


def test_depthwise_convolution_of_a_view(shimmed, launched):
    source, weight = strided(40, 24), random(24, 1, 1, 1, seed=1)
    got = convolution.conv_rows(source, torch.arange(40).view(40, 1), weight, None, 24)
    assert (launched, torch.allclose(got, source * weight.flatten(), atol=1e-6)) == (["rows_product_of_few"], True)


def test_convolution_with_a_bias_that_is_a_view(shimmed):
    source, weight, bias = random(40, 24), random(17, 24, 1, 1, seed=1), random(34)[::2]
    got = convolution.conv_rows(source, torch.arange(40).view(40, 1), weight, bias, 1)
    assert torch.allclose(got, F.linear(source, weight.flatten(1), bias), atol=1e-4)


def test_affine_map_of_views(shimmed):
    rows, scale, shift = strided(7, 5), strided(2, 5, 1), strided(2, 5, 2)
    sample = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    got = normalization.affine_rows(rows, scale, shift, sample)
    assert torch.allclose(got, rows * scale[sample] + shift[sample], atol=1e-6)


def test_affine_map_in_float_of_rows_in_half(shimmed):
    rows, scale, shift = random(7, 5).half(), random(1, 5, seed=1), random(1, 5, seed=2)
    got = normalization.affine_rows(rows, scale, shift, None)
    assert torch.equal(got, (rows.float() * scale + shift).half())


def updated_statistics(rows, sums, weight=None, batch=1):
    """`update_statistics_` of four tiles of two positions and two groups, changed of eight; (its results, the new sums exactly)."""
    changed, centre = torch.tensor([1, 2, 5, 6]), random(batch, 2, seed=5)
    sample = None if batch == 1 else changed // 4
    totals = torch.full((batch, 4), 100.0)
    got = normalization.update_statistics_(rows, sums, changed, centre, totals, sample, weight, weight, 2, 99, 1e-5)
    pick = torch.zeros(4, dtype=torch.long) if batch == 1 else sample
    apart = rows.double().view(4, 2, 2, -1) - centre.double()[pick][:, None, :, None]
    return got, torch.cat([apart.sum((1, 3)), apart.square().sum((1, 3))], 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_statistics_of_views(launched, batch):
    sums = strided(8, 4, 1)
    outside = int(sums._base.isnan().sum())
    before = sums.clone()
    (old, *_), exact = updated_statistics(strided(8, 6), sums, strided(1, 6, 2)[0], batch)
    changed = torch.tensor([1, 2, 5, 6])
    assert (launched, torch.equal(old, before[changed])) == (["exchange_sums", "merge_statistics"], True)
    assert torch.allclose(sums[changed].double(), exact, atol=1e-5)
    assert (torch.equal(sums[[0, 3, 4, 7]], before[[0, 3, 4, 7]]), int(sums._base.isnan().sum())) == (True, outside)


def test_totals_lose_no_digits_to_one_that_is_large(shimmed):
    """A change of a million and one of a thousandth, in two tiles: a sum of floats would have dropped the small one before the large
    one is gone."""
    rows = torch.tensor([[1e6], [1e-3], [-1e6]])
    sums, centre, totals = torch.zeros(3, 2), torch.zeros(1, 1), torch.zeros(1, 2)
    _, after, *_ = normalization.update_statistics_(
        rows, sums, torch.arange(3), centre, totals, None, None, None, 1, 3, 1e-5
    )
    assert after[0, 0].item() == pytest.approx(1e-3, rel=1e-6)


def test_totals_in_float64_are_declined(shimmed):
    rows, wide = random(4, 2), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(
        backends.Declined, match="^Metal has no double, its kernels read centres and totals in float32$"
    ):
        normalization.update_statistics_(rows, rows, torch.arange(4), wide[:, :1], wide, None, None, None, 1, 8, 1e-5)


@pytest.mark.parametrize(
    "width, dtype, start, word",
    [
        pytest.param(8, torch.float16, 0, "ulong", id="rows of 16 bytes"),
        pytest.param(6, torch.float16, 0, "uint", id="rows of 12 bytes"),
        pytest.param(3, torch.float16, 0, "ushort", id="rows of 6 bytes"),
        pytest.param(8, torch.float16, 1, "ushort", id="beginning at an odd place"),
        pytest.param(3, torch.uint8, 0, "uchar", id="bytes"),
        pytest.param(5, torch.int64, 0, "ulong", id="int64"),
    ],
)
def test_rows_are_copied_by_the_widest_word(shimmed, monkeypatch, width, dtype, start, word):
    seen, run = [], launch.run
    monkeypatch.setattr(
        launch, "run", lambda file, name, types, *rest: seen.append(types) or run(file, name, types, *rest)
    )
    source = torch.arange(width * 6 + start).to(dtype)[start:].view(6, width)
    got = gather.gather_rows(source, torch.tensor([5, 2]))
    assert (seen[0]["T_FROM"], torch.equal(got, source[[5, 2]])) == (word, True)


def test_row_minus_one_is_no_row(shimmed):
    index, target = torch.tensor([-1, 2, -1]), random(4, 8)
    before = target.clone()
    gather.scatter_rows_(target, index, random(3, 8, seed=1))
    changed = (target != before).any(1).tolist()
    gathered = gather.gather_rows(target, index)
    assert (changed, gathered[[0, 2]].abs().sum().item(), torch.equal(gathered[1], target[2])) == (
        [False, False, True, False],
        0,
        True,
    )


# Few rows and a deep product: shares of the depth are summed apart.


@pytest.mark.parametrize("bias", [None, random(40, seed=2)], ids=["no bias", "bias"])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("depth", [1024, 1000, 129])
def test_deep_products_of_few_rows_are_split(launched, rows, depth, bias):
    source, weight = random(rows, depth), random(40, depth, seed=1)
    got = convolution.linear_rows(source, weight, bias)
    expected = ["rows_product", "sum_splits"] if depth > 256 else ["rows_product"]
    exact = F.linear(source.double(), weight.double(), None if bias is None else bias.double())
    assert (launched, torch.allclose(got.double(), exact, atol=1e-3)) == (expected, True)


def test_a_split_convolution_in_groups(launched):
    source, weight = random(50, 320), random(20, 160, 2, 2, seed=1)
    index = torch.randint(-1, 50, (9, 4), generator=torch.Generator().manual_seed(3))
    got = convolution.conv_rows(source, index, weight, None, 2)
    rows = source[index.clamp(min=0)] * (index >= 0)[..., None]
    exact = torch.einsum("ntgc,goct->ngo", rows.view(9, 4, 2, 160), weight.view(2, 10, 160, 4)).reshape(9, 20)
    assert (launched, torch.allclose(got, exact, atol=1e-3)) == (["rows_product", "sum_splits"], True)


@pytest.mark.parametrize("tiles", [1, 7, 64, 500])
@pytest.mark.parametrize("depth", [1, 32, 33, 640, 4608])
def test_shares_cover_the_depth_and_none_is_empty(tiles, depth):
    splits, share = convolution._splits(tiles, depth)
    assert (splits - 1) * share < depth <= splits * share and share % convolution._DEPTH == 0


def test_many_tiles_are_not_split():
    assert convolution._splits(64, 4608)[0] == 1


# What is declined, and what is refused.


@pytest.fixture
def said(shimmed, monkeypatch, caplog):
    monkeypatch.setattr(backends, "_declined", [])
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_float64_is_left_to_the_reference(said):
    rows, weight = random(5, 8).double(), random(3, 8, seed=1).double()
    with backends.forced("mps"):
        got = ops.linear_rows(rows, weight, None)
    reason = "kernel backend 'mps' leaves linear_rows to 'reference': its kernels know float32, float16 and bfloat16, not float64"
    assert (torch.allclose(got, rows @ weight.t()), said()) == (True, [reason])


def test_row_numbers_in_int32_are_left_to_the_reference(said):
    source = random(5, 8)
    with backends.forced("mps"):
        got = ops.gather_rows(source, torch.tensor([4, 1], dtype=torch.int32))
    reason = "kernel backend 'mps' leaves gather_rows to 'reference': its kernels read row numbers in int64, not int32"
    assert (torch.equal(got, source[[4, 1]]), said()) == (True, [reason])


def test_complex_rows_are_left_to_the_reference(said):
    source = random(5, 8).to(torch.complex128)
    with backends.forced("mps"):
        got = ops.gather_rows(source, torch.tensor([4, 1]))
    reason = "kernel backend 'mps' leaves gather_rows to 'reference': its kernels copy elements of 1, 2, 4 or 8 bytes, not 16"
    assert (torch.equal(got, source[[4, 1]]), said()) == (True, [reason])


@pytest.fixture
def apple_gpu(monkeypatch):
    """PyTorch finds an Apple GPU, or none: ``apple_gpu(True)``."""
    monkeypatch.delenv("SIGE_BACKEND", raising=False)

    def found(yes):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: yes)
        backends.missing.cache_clear()
        backends._own.cache_clear()

    yield found
    monkeypatch.undo()
    backends.missing.cache_clear()
    backends._own.cache_clear()


def test_apple_tensors_go_to_metal(apple_gpu):
    apple_gpu(True)
    assert (backends.active("mps"), "mps" in backends.available()) == ("mps", True)


def test_asking_for_metal_on_another_device(apple_gpu, monkeypatch):
    apple_gpu(True)
    monkeypatch.setenv("SIGE_BACKEND", "mps")
    message = "^kernel backend 'mps' cannot serve cpu tensors: choose 'reference' or unset SIGE_BACKEND$"
    with pytest.raises(RuntimeError, match=message):
        ops.gather_rows(random(3, 2), torch.tensor([0]))


def test_asking_for_metal_without_an_apple_gpu(apple_gpu, monkeypatch):
    apple_gpu(False)
    monkeypatch.setenv("SIGE_BACKEND", "mps")
    message = (
        "^kernel backend 'mps' was asked for, but PyTorch finds no Apple GPU: choose another or unset SIGE_BACKEND$"
    )
    with pytest.raises(RuntimeError, match=message):
        ops.gather_rows(random(3, 2), torch.tensor([0]))


# A whole session.


def edited(backend, norm, mask):
    """The edited output of a small network under ``backend``, and the effect."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.Conv2d(16, 20, 1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(20, 3, 5, padding=2),
    )
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    x0 = random(1, 3, 32, 32, seed=1)
    policy = dataclasses.replace(
        sige.policy("pixel"), min_resolution=1, upsample_min_source=1, dense_above=None, norm=norm
    )
    with backends.forced(backend), torch.no_grad():
        session = sige.Session(model, policy)
        with session.record():
            model(x0)
        with session.edit(mask) as effect:
            return model(x0 + 3 * mask), effect


@pytest.mark.parametrize("norm", ["cached", "incremental"])
def test_an_edit_on_metal_equals_one_on_the_cpu(launched, monkeypatch, norm):
    monkeypatch.setattr(backends, "say_once", lambda *args: pytest.fail(str(args)))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:14, 28:] = mask[0, 0] = True
    (got, effect), (exact, other) = (edited(backend, norm, mask) for backend in ("mps", "cpu"))
    used = {"gather_rows", "exchange_rows", "rows_product", "affine_rows"}
    used |= {"exchange_sums", "merge_statistics"} if norm == "incremental" else set()
    assert 0 < effect.macs < 0.5 * effect.dense_macs and effect.macs == other.macs
    assert (used - set(launched), torch.allclose(got, exact, atol=1e-4)) == (set(), True)
