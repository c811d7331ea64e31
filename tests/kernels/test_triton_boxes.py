"""Convolution by boxes of the map, for Hopper: the rows that row numbers give, and when it serves. Without a GPU in the interpreter."""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from pretended import gpu
from test_fused import activated
from torch import nn

import sige
from sige.active_set import ActiveSet
from sige.kernels import backends, ops
from sige.kernels.triton import boxes, convolution, launch, tiles
from sige.windows import Window, window_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEIGHT, WIDTH = 2, 16, 32
EPS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not launch.copies_boxes(torch.device("cuda")), reason="this GPU copies no boxes"
)


def random(*shape, seed=0, dtype=torch.float16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


class Case:
    """A convolution of two maps at whole tiles, and the exact rows (float64). ``chosen``: share of the tiles, corners among them."""

    def __init__(self, dtype, channels, outputs, tile, kernel=(3, 3), chosen=0.4):
        generator = torch.Generator().manual_seed(5)
        grid = torch.rand(BATCH, HEIGHT // tile[0], WIDTH // tile[1], generator=generator) < chosen
        grid[0, 0, 0] = grid[1, -1, -1] = True
        grid[1, 0, 0] = bool(grid.sum() % 2 == 0)  # an odd number of tiles: a program of two has one to spare
        self.set = ActiveSet.from_tiles(grid, tile, HEIGHT, WIDTH)
        around = tuple(side // 2 for side in kernel)
        window = Window((HEIGHT, WIDTH), (HEIGHT, WIDTH), kernel, (1, 1), around, (1, 1))
        self.source = random(BATCH * HEIGHT * WIDTH, channels, dtype=dtype)
        self.weight = (
            random(outputs, channels, *kernel, seed=1, dtype=dtype) / (channels * kernel[0] * kernel[1]) ** 0.5
        )
        self.bias = random(outputs, seed=2, dtype=dtype)
        self.index = window_rows(self.set, window).to(DEVICE)
        self.tiling = (HEIGHT, WIDTH, *tile)
        image = self.source.double().view(BATCH, HEIGHT, WIDTH, channels).permute(0, 3, 1, 2)
        made = F.conv2d(image, self.weight.double(), self.bias.double(), padding=around).permute(0, 2, 3, 1)
        self.exact = made.reshape(-1, outputs)[self.set.positions.to(DEVICE)]

    def rows(self, **more):
        given = dict(source=self.source, index=self.index, weight=self.weight, bias=self.bias, tiling=self.tiling)
        with backends.forced("triton"), boxes.used():
            return ops.conv_rows(**given | more)


@pytest.fixture
def launched(monkeypatch):
    """(name of the kernel, boxes of a program) of every launch. A GPU of one multiprocessor: few tiles are enough."""
    seen, run = [], launch.run

    def noted(kernel, grid, arguments, *more):
        seen.append((kernel.__name__, arguments.get("BOXES")))
        run(kernel, grid, arguments, *more)

    monkeypatch.setattr(launch, "run", noted)
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 1)
    return seen


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize(
    "channels, outputs, tile, kernel",
    [
        pytest.param(32, 40, (8, 8), (3, 3), id="8x8"),
        pytest.param(72, 20, (8, 8), (3, 3), id="channels that no step divides"),
        pytest.param(8, 300, (8, 8), (3, 3), id="more outputs than one program's"),
        pytest.param(16, 16, (4, 16), (5, 5), id="4x16, 5x5"),
        pytest.param(16, 24, (8, 16), (3, 1), id="8x16, 3x1"),
        pytest.param(16, 24, (2, 32), (1, 3), id="2x32, 1x3"),
    ],
)
def test_boxes_give_the_rows_of_the_convolution(launched, dtype, channels, outputs, tile, kernel):
    case = Case(dtype, channels, outputs, tile, kernel)
    error = (case.rows().double() - case.exact).abs().max() / case.exact.abs().max()
    assert (launched, bool(error < EPS[dtype])) == ([("box_product", 2)], True), error


def test_one_tile_a_program(launched, monkeypatch):
    case = Case(torch.float16, 16, 24, (8, 8))
    monkeypatch.setattr(tiles, "boxes", lambda *args: tiles.Boxes(1, 16, 16, 4, 2))
    error = (case.rows().double() - case.exact).abs().max()
    assert (launched, bool(error < 1e-2)) == ([("box_product", 1)], True)


@pytest.mark.parametrize("share", [pytest.param(0.0, id="corners"), pytest.param(1.1, id="every tile")])
def test_masks(launched, share):
    case = Case(torch.float16, 16, 24, (8, 8), chosen=share)
    assert bool((case.rows().double() - case.exact).abs().max() < 1e-2) and launched == [("box_product", 2)]


def test_a_map_among_others_in_memory_is_read_where_it_lies(launched):
    case = Case(torch.float16, 16, 24, (8, 8))
    wide = torch.full((len(case.source), 40), float("nan"), dtype=torch.float16, device=DEVICE)
    wide[:, 8:24] = case.source
    rows = case.rows(source=wide[:, 8:24])
    assert bool((rows.double() - case.exact).abs().max() < 1e-2) and launched == [("box_product", 2)]


@pytest.mark.parametrize("raw", [True, False], ids=["raw rows too", "activated alone"])
def test_all_that_follows_a_convolution(launched, raw):
    case = Case(torch.float16, 16, 24, (8, 8))
    places = case.set.positions.to(DEVICE)
    sample, count = case.set.sample().to(DEVICE), len(places)
    vector, scale, shift = (random(BATCH, 24, seed=seed) for seed in (3, 4, 5))
    residual, target = random(BATCH * HEIGHT * WIDTH, 24, seed=6), random(BATCH * HEIGHT * WIDTH, 24, seed=7)
    before = target.clone()
    with backends.forced("triton"), boxes.used():
        made, old = ops.conv_rows_fused(
            case.source, case.index, case.weight, case.bias, 1, count, vector, residual, places, sample, scale, shift, "silu", 0.0,
            target, places, raw, tiling=case.tiling,
        )  # fmt: skip
    exact = case.exact + vector.double()[sample] + residual.double()[places]
    after = before.double()
    after[places] = activated(exact * scale.double()[sample] + shift.double()[sample], "silu")
    close = [
        torch.allclose(target.double(), after, atol=3e-2),
        not raw or torch.allclose(made.double(), exact, atol=3e-2),
    ]
    assert (launched, torch.equal(old, before[places]), close) == ([("box_product", 2)], True, [True, True])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda case: dict(tiling=None), id="positions anywhere"),
        pytest.param(lambda case: dict(tiling=(HEIGHT, WIDTH, 4, 4)), id="tiles of 4x4"),
        pytest.param(
            lambda case: dict(source=case.source.float(), weight=case.weight.float(), bias=None), id="float32"
        ),
        pytest.param(lambda case: dict(source=case.source.t().contiguous().t()), id="channels apart"),
        pytest.param(lambda case: dict(source=F.pad(case.source, (1, 7))[:, 1:17]), id="not aligned"),
        pytest.param(lambda case: dict(source=F.pad(case.source, (0, 1))[:, :16]), id="rows not aligned"),
        pytest.param(lambda case: dict(source=case.source.bfloat16()), id="remembered in another dtype"),
    ],
)
def test_else_row_numbers_serve(launched, change):
    case = Case(torch.float16, 16, 24, (8, 8))
    rows = case.rows(**{"bias": case.bias} | change(case))
    assert [name for name, _ in launched] == ["product"] and rows.isfinite().all()


def test_a_count_on_the_device_is_served_by_row_numbers(launched):
    case = Case(torch.float16, 16, 24, (8, 8))
    count = torch.tensor([64], dtype=torch.int32, device=DEVICE)
    with boxes.used():
        convolution.rows_product(case.source, case.index, case.weight, case.bias, count=count, tiling=case.tiling)
    assert [name for name, _ in launched] == ["product"]


def test_groups_are_served_by_row_numbers(launched):
    case = Case(torch.float16, 32, 24, (8, 8))
    case.rows(weight=random(32, 16, 3, 3), bias=None, groups=2)
    assert [name for name, _ in launched] == ["product"]


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_they_serve_where_the_environment_asks_for_them(launched, monkeypatch, asked):
    monkeypatch.delenv("SIGE_TRITON_BOXES", raising=False)
    if asked is not None:
        monkeypatch.setenv("SIGE_TRITON_BOXES", asked)
    case = Case(torch.float16, 16, 24, (8, 8))
    with backends.forced("triton"):
        ops.conv_rows(case.source, case.index, case.weight, case.bias, 1, case.tiling)
    assert launched == ([("box_product", 2)] if asked == "1" else [("product", None)])


def test_a_gpu_that_copies_none_says_so_once(launched, monkeypatch):
    monkeypatch.setattr(backends, "_declined", [])
    monkeypatch.setattr(launch, "copies_boxes", lambda device: False)
    case = Case(torch.float16, 16, 24, (8, 8))
    case.rows(), case.rows()
    assert [name for name, _ in launched] == ["product"] * 2
    assert [sentence.split(":")[0] for sentence in backends.declined()] == ["SIGE_TRITON_BOXES=1 changes nothing"]


@pytest.mark.parametrize(
    "capability, there", [((8, 6), False), ((9, 0), True), ((10, 0), True), ((12, 0), False)], ids=str
)
def test_which_gpus_copy_boxes(monkeypatch, capability, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch.copies_boxes(torch.device("cuda", 0)) is there


@pytest.mark.parametrize(
    "area, count, outputs, expected",
    [
        pytest.param(64, 640, 256, (2, 256), id="many tiles"),
        pytest.param(64, 160, 128, (1, 128), id="a tile a multiprocessor"),
        pytest.param(128, 640, 512, (2, 128), id="wide tiles"),
        pytest.param(64, 70, 128, (1, 64), id="half the outputs each"),
        pytest.param(64, 60, 128, None, id="too few"),
        pytest.param(16, 640, 256, None, id="tiles of 4x4"),
    ],
)
def test_how_a_product_is_cut(area, count, outputs, expected):
    chosen = tiles.boxes(area, count, outputs, 128, 9, 132)
    assert expected == (chosen and (chosen.boxes, chosen.outputs))


@pytest.mark.parametrize("outputs", [16, 64, 128, 320, 512])
@pytest.mark.parametrize("channels", [8, 64, 320])
@pytest.mark.parametrize("area", [64, 128])
def test_a_cut_fits_hoppers_memory_and_registers(area, channels, outputs):
    chosen = tiles.boxes(area, 4000, outputs, channels, 9, 132)
    rows = chosen.boxes * area
    held = chosen.stages * (rows + chosen.outputs) * chosen.depth * 2
    assert held <= tiles.HOPPER_SHARED_BYTES and rows * chosen.outputs <= 128 * 32 * chosen.warps and chosen.stages >= 2


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1)
    return nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1)).eval().requires_grad_(False)


def edited(backend, device, dtype):
    """Outputs of two edits of other masks in a row, three steps each, and how many of the last one's were replayed."""
    model, made = network().to(device, dtype), []
    x0 = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    policy = dataclasses.replace(sige.policy("incremental"), min_resolution=1, dilation=0)
    with backends.forced(backend), torch.no_grad():
        session = sige.Session(model, policy)
        with session.record():
            for _ in range(3):
                model(x0)
        for place in (2, 17):
            mask = torch.zeros(32, 32, dtype=torch.bool)
            mask[place : place + 7, place] = mask[0, 31] = True
            with session.edit(mask):
                made += [model(x0 + 3 * mask.to(device)).double().cpu() for _ in range(3)]
            session.undo()
    return torch.stack(made), session.replayed_steps


def test_edits_of_a_session(launched, monkeypatch):
    """The steps of an edit, replayed ones too, after an edit of other tiles; where there is no GPU, on one that is pretended."""
    exact, _ = edited("cpu", "cpu", torch.float64)
    served, run = [], boxes.run
    monkeypatch.setattr(boxes, "run", lambda *args: served.append(args) or run(*args))
    with gpu("triton") if DEVICE == "cpu" else contextlib.nullcontext(), boxes.used():
        monkeypatch.setattr(launch, "multiprocessors", lambda device: 1)
        got, steps = edited("triton", "cuda", torch.float16)
    assert (len(served), bool(steps)) == (12, True)  # two layers in six steps; three channels are not aligned
    assert (got - exact).abs().max() < 2e-2
