"""Triton's kernels beyond the operators' contract: compaction of a mask on the device, counts that stay there, tiles, weights."""

import pytest
import torch
import torch.nn.functional as F

import sige  # noqa: F401
from sige.kernels import backends, ops, weights
from sige.kernels.triton import compaction, convolution, gather, launch, normalization, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEIGHT, WIDTH = 45, 61


def mask(kind, height=HEIGHT, width=WIDTH):
    found = torch.full((2, height, width), kind == "all")
    if kind == "one":
        found[1, height // 2, width - 1] = True
    elif kind == "ragged":
        found[0] = torch.rand(height, width, generator=torch.Generator().manual_seed(7)) > 0.9
        found[0, 0, 0] = found[0, -1, -1] = found[0, 0, -1] = found[0, -1, 0] = True
        found[1, height // 2] = found[1, :, width // 3] = True
    elif kind == "corner":
        found[0, :3, :4] = True
    return found.to(DEVICE)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("kind", ["ragged", "one", "all", "none", "corner"])
def test_compaction_lists_the_active_positions_in_order(kind):
    edit = mask(kind)
    active = compaction.allocate(edit, edit.numel() + 500)
    active.rows.fill_(12345)
    compaction.compact_(edit, active)
    exact = edit.flatten().nonzero().flatten()
    expected = torch.cat([exact, exact.new_full((len(active.rows) - len(exact),), -1)])
    assert (torch.equal(active.rows, expected), int(active.count), active.check()) == (True, len(exact), len(exact))


@pytest.mark.parametrize("kind", ["ragged", "all"])
@pytest.mark.parametrize("short", [0, 1, 200], ids=["just fits", "one too many", "many too many"])
def test_an_overflow_is_flagged_and_lists_nothing(kind, short):
    edit = mask(kind)
    count = int(edit.sum())
    active = compaction.allocate(edit, count - short)
    compaction.compact_(edit, active)
    left = int((active.rows >= 0).sum())
    assert (bool(active.overflowed()), int(active.count), left) == (bool(short), count, 0 if short else count)


def test_reading_an_overflow_is_an_error():
    active = compaction.allocate(mask("corner"), 11)
    compaction.compact_(mask("corner"), active)
    with pytest.raises(
        ValueError, match="^the mask has 12 active positions and the list holds 11: use a larger capacity$"
    ):
        active.check()


def test_a_list_without_room_is_refused():
    with pytest.raises(ValueError, match="^capacity 0 holds no row: it must be at least 1$"):
        compaction.allocate(mask("one"), 0)


def test_buffers_of_another_mask_are_refused():
    active = compaction.allocate(mask("one"), 10)
    with pytest.raises(ValueError, match=r"made for a mask of another size than \(2, 9, 9\)"):
        compaction.compact_(mask("one", 9, 9), active)


@pytest.mark.parametrize(
    "stride, padding, dilation, kernel", [(1, 1, 1, 3), (2, 1, 1, 3), (1, 2, 2, 3), (2, 0, 1, 5), (1, 0, 1, 1)]
)
def test_rows_read_by_each_tap(stride, padding, dilation, kernel):
    size = (13, 17)
    numbers = torch.arange(1, 2 * 13 * 17 + 1, dtype=torch.float64).view(2, 1, *size)
    exact = F.unfold(numbers, kernel, dilation, padding, stride).permute(0, 2, 1).reshape(-1, kernel**2).long() - 1
    rows = torch.cat([torch.arange(len(exact)), torch.tensor([-1, -1])]).to(DEVICE)
    index = torch.full((len(rows), kernel**2), 12345, device=DEVICE)
    compaction.tap_rows_(rows, index, size, *((side, side) for side in (kernel, stride, padding, dilation)))
    assert torch.equal(index.cpu(), torch.cat([exact, exact.new_full((2, kernel**2), -1)]))


class Step:
    """A step of an edit whose launches depend on the capacity alone: what a CUDA graph would hold."""

    def __init__(self, capacity):
        shape = (2, HEIGHT, WIDTH)
        self.edit = torch.zeros(shape, dtype=torch.bool, device=DEVICE)
        self.active = compaction.allocate(self.edit, capacity)
        self.index = torch.empty(capacity, 9, dtype=torch.int64, device=DEVICE)
        self.source, self.weight, self.bias = (
            random(2 * HEIGHT * WIDTH, 16),
            random(24, 16, 3, 3, seed=1),
            random(24),
        )

    def replay(self, edit):
        """The remembered output, with the rows of this edit written into it."""
        self.edit.copy_(edit)
        target = torch.full((2 * HEIGHT * WIDTH, 24), float("nan"), device=DEVICE)
        compaction.compact_(self.edit, self.active)
        compaction.tap_rows_(self.active.rows, self.index, (HEIGHT, WIDTH), (3, 3), padding=(1, 1))
        rows = convolution.rows_product(self.source, self.index, self.weight, self.bias, count=self.active.count)
        gather.scatter_rows_(target, self.active.rows, rows)
        return target


@pytest.mark.parametrize(
    "first, second", [("ragged", "corner"), ("corner", "ragged"), ("corner", "none"), ("none", "one")]
)
def test_a_new_mask_in_the_same_buffers_gives_what_fresh_ones_give(first, second):
    old = Step(700)
    old.replay(mask(first))
    again, fresh = old.replay(mask(second)), Step(700).replay(mask(second))
    assert torch.equal(again.nan_to_num(1e9), fresh.nan_to_num(1e9))


def test_a_step_writes_the_convolution_of_the_active_positions_and_nothing_else():
    step, edit = Step(700), mask("ragged")
    got = step.replay(edit).cpu()
    image = step.source.cpu().double().view(2, HEIGHT, WIDTH, 16).permute(0, 3, 1, 2)
    exact = F.conv2d(image, step.weight.cpu().double(), step.bias.cpu().double(), padding=1)
    exact = exact.permute(0, 2, 3, 1).reshape(-1, 24)
    on = edit.cpu().flatten()
    assert torch.allclose(got[on].double(), exact[on], atol=1e-4) and bool(got[~on].isnan().all())


@pytest.mark.parametrize("rows", [70, 3])
@pytest.mark.parametrize("groups", [pytest.param(1, id="dense"), pytest.param(16, id="depthwise")])
@pytest.mark.parametrize("side", [pytest.param(3, id="sum in parts"), pytest.param(1, id="sum in one piece")])
def test_rows_beyond_the_count_are_not_written(monkeypatch, rows, groups, side):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **more: empty(*args, **more).fill_(777))
    index = torch.zeros(90, side**2, dtype=torch.int64, device=DEVICE)
    count = torch.tensor([rows], dtype=torch.int32, device=DEVICE)
    source, weight = torch.ones(5, 16, device=DEVICE), torch.ones(16, 16 // groups, side, side, device=DEVICE)
    out = convolution.rows_product(source, index, weight, None, groups, count=count)
    assert ((out[:rows] == side**2 * 16 // groups).all(), (out[rows:] == 777).all()) == (True, True)


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_split_sums_equal_whole_ones(monkeypatch, parts):
    source, weight, bias = random(50, 40), random(24, 40, 3, 3, seed=1), random(24, seed=2)
    index = torch.randint(-1, 50, (20, 9), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    steps = 18  # two stretches of 32 channels under each of nine taps
    chosen = tiles.Tiles(16, 16, 32, parts, -(-steps // parts), 4, 3)
    monkeypatch.setattr(tiles, "choose", lambda *args: chosen)
    got = convolution.rows_product(source, index, weight, bias)
    with backends.forced("reference"):
        exact = backends.implementation("conv_rows", DEVICE)(source.double(), index, weight.double(), bias.double(), 1)
    assert torch.allclose(got.double(), exact, atol=1e-4)


def test_a_source_of_any_strides_is_read_where_it_lies(monkeypatch):
    wide = random(48, 50)
    source, index = wide.t()[::2], torch.arange(25, device=DEVICE)[:, None]  # neither rows nor columns contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self: self if self is not source else pytest.fail("copied"))
    got = convolution.rows_product(source, index, torch.eye(48, device=DEVICE).view(48, 48, 1, 1), None)
    assert torch.allclose(got, source, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shared", [False, True], ids=["one launch", "two launches"])
def test_statistics_shared_out_over_programs_are_merged(monkeypatch, shared, batch):
    # 9 tiles of 5 groups: blocks of 4 tiles, 2 groups and 8 values, by one program or by three.
    monkeypatch.setattr(
        normalization.cut, "statistics", lambda *args: tiles.Statistics(8, 2, 4, *((3, 4) if shared else (1, 12)))
    )
    launches, run = [], launch.run
    monkeypatch.setattr(launch, "run", lambda *args, **more: launches.append(args[1]) or run(*args, **more))
    changed, centre = torch.arange(1, 10, device=DEVICE), random(batch, 5).double()
    sample, totals = None if batch == 1 else changed // 5, random(batch, 10, seed=1).double() + 5e3
    given = (changed, centre, totals, sample, random(15, seed=2), random(15, seed=3), 5, 300, 1e-5)
    rows, sums, again = random(36, 15, seed=4), random(10, 10, seed=5), random(10, 10, seed=5)
    got = normalization.update_statistics_(rows, sums, *given)
    with backends.forced("reference"):
        exact = backends.implementation("update_statistics_", DEVICE)(rows, again, *given)
    alike = [torch.allclose(*pair, rtol=1e-5, atol=1e-4) for pair in zip((*got, sums), (*exact, again), strict=True)]
    assert (len(launches), alike) == (1 + shared, [True] * 5)


def test_row_minus_one_gathers_zeros_and_scatters_nothing():
    index, target = torch.tensor([-1, 1], device=DEVICE), torch.zeros(3, 2, device=DEVICE)
    rows = gather.gather_rows(torch.full((3, 2), 5.0, device=DEVICE), index)
    gather.scatter_rows_(target, index, torch.full((2, 2), 7.0, device=DEVICE))
    assert (rows.tolist(), target.tolist()) == ([[0, 0], [5, 5]], [[0, 0], [7, 7], [0, 0]])


def test_row_minus_one_exchanges_nothing_and_gives_zeros():
    index, target = torch.tensor([-1, 1], device=DEVICE), torch.full((3, 2), 5.0, device=DEVICE)
    old = gather.exchange_rows_(target, index, torch.full((2, 2), 7.0, device=DEVICE))
    assert (old.tolist(), target.tolist()) == ([[0, 0], [5, 5]], [[5, 5], [7, 7], [5, 5]])


def test_a_changed_weight_is_arranged_again_and_let_go_with_its_weight():
    before, weight = weights.packed_bytes(), random(8, 4, 3, 3)
    weights.matrix(weight)
    weight.mul_(2)
    again, held = weights.matrix(weight), weights.packed_bytes() - before
    exact = weight.permute(0, 2, 3, 1).reshape(8, 36)
    same = torch.equal(again, exact)
    del weight
    assert (same, held, weights.packed_bytes()) == (True, 8 * 36 * 4, before)


@pytest.mark.parametrize(
    "shape, layout", [((8, 4, 1, 1), torch.contiguous_format), ((8, 4, 3, 3), torch.channels_last)]
)
def test_a_weight_that_lies_right_is_not_copied(shape, layout):
    weight = random(*shape).contiguous(memory_format=layout)
    assert weights.matrix(weight).data_ptr() == weight.data_ptr()


CHOICES = pytest.mark.parametrize(
    "rows, outputs, channels, taps", [(1, 17, 3, 9), (64, 512, 512, 9), (800, 128, 128, 9), (10**6, 1280, 2560, 1)]
)


@CHOICES
@pytest.mark.parametrize("size, fused", [(2, True), (4, True), (4, False)], ids=["16 bit", "tf32", "float32"])
def test_tiles_cover_the_sum_and_fit_a_card(rows, outputs, channels, taps, size, fused):
    chosen = tiles.choose(rows, outputs, channels, taps, 1, size, fused)
    flat = channels < chosen.depth
    steps = -(-taps * channels // chosen.depth) if flat else taps * -(-channels // chosen.depth)
    assert (chosen.parts - 1) * chosen.steps < steps <= chosen.parts * chosen.steps
    assert (chosen.rows + chosen.outputs) * chosen.depth * size * 2 <= tiles.SHARED_BYTES


def test_few_rows_are_spread_over_the_card_by_splitting_sums():
    few, many = (tiles.choose(rows, 512, 512, 9) for rows in (64, 60000))
    assert (few.parts > 4, many.parts) == (True, 1)


@CHOICES
@pytest.mark.parametrize("size", [2, 4])
def test_no_more_parts_than_are_read_as_fast_as_operands(rows, outputs, channels, taps, size):
    chosen = tiles.choose(rows, outputs, channels, taps, 1, size)
    operands = chosen.steps * (chosen.rows + chosen.outputs) * chosen.depth * size
    assert chosen.parts == 1 or chosen.parts * chosen.rows * chosen.outputs * 4 <= 1.25 * operands


class Split:
    """A convolution of few rows and a long sum, and what it launches."""

    def __init__(self, monkeypatch, groups=1, dtype=torch.float32):
        run, self.launched = launch.run, []

        def noted(kernel, grid, arguments, *settings):
            self.launched.append((kernel.__name__, grid, arguments))
            run(kernel, grid, arguments, *settings)

        monkeypatch.setattr(launch, "run", noted)
        self.groups, self.source = groups, random(300, 64 * groups, dtype=dtype)
        self.index = torch.randint(-1, 300, (40, 9), generator=torch.Generator().manual_seed(3)).to(DEVICE)
        self.weight, self.bias = random(24 * groups, 64, 3, 3, seed=1, dtype=dtype), random(24 * groups, dtype=dtype)

    def run(self, rows=40, **more):
        return convolution.rows_product(self.source, self.index[:rows], self.weight, self.bias, self.groups, **more)

    def exact(self, rows=40):
        given = self.source.double(), self.index[:rows], self.weight.double(), self.bias.double(), self.groups
        with backends.forced("reference"):
            return ops.conv_rows(*given)

    def counters(self):
        return self.launched[-1][2]["arrived"]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_split_sum_is_one_launch(monkeypatch, groups):
    split = Split(monkeypatch, groups)
    got = split.run()
    ((name, (_, parts, _), _),) = split.launched
    assert (name, parts > 1, torch.allclose(got.double(), split.exact(), atol=1e-4)) == ("product", True, True)


def test_a_split_sum_leaves_its_counters_at_zero_for_the_next(monkeypatch):
    split = Split(monkeypatch)
    wrong = [rows for rows in (40, 7, 40) if not torch.allclose(split.run(rows).double(), split.exact(rows), atol=1e-4)]
    assert (wrong, int(split.counters().abs().sum())) == ([], 0)


def test_a_split_sum_keeps_its_counters_from_launch_to_launch(monkeypatch):
    split = Split(monkeypatch)
    split.run()
    first = split.counters()
    split.run()
    assert split.counters() is first


def test_of_a_split_sum_only_the_rows_that_are_there_are_written(monkeypatch):
    split = Split(monkeypatch)
    count = torch.tensor([0], dtype=torch.int32, device=DEVICE)
    split.run(count=count)
    assert (len(split.launched), int(split.counters().abs().sum())) == (1, 0)


@pytest.fixture
def said(caplog, monkeypatch):
    """What was logged, with nothing remembered of what was said before."""
    monkeypatch.setattr(backends, "_declined", [])
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("operator", ["gather_rows", "conv_rows", "linear_rows", "affine_rows", "update_statistics_"])
def test_float64_is_left_to_the_reference(operator, said):
    rows = torch.rand(4, 3, dtype=torch.float64, device=DEVICE)
    index = torch.tensor([0, 3], device=DEVICE)
    statistics = (
        torch.zeros(1, 1, dtype=torch.float64, device=DEVICE),
        torch.ones(1, 2, dtype=torch.float64, device=DEVICE),
    )
    args = {
        "gather_rows": (rows, index),
        "conv_rows": (rows, index[:, None], torch.ones(2, 3, 1, 1, dtype=torch.float64, device=DEVICE), None, 1),
        "linear_rows": (rows, torch.ones(2, 3, dtype=torch.float64, device=DEVICE), None),
        "affine_rows": (rows, rows[:1], rows[1:2], None),
        "update_statistics_": (rows[:, :2], rows[:, :2].clone(), index[:1], *statistics, None, None, None, 1, 12, 1e-5),
    }[operator]

    def fresh():
        return [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]

    with backends.forced("triton"):
        got = getattr(ops, operator)(*fresh())
    with backends.forced("reference"):
        exact = getattr(ops, operator)(*fresh())
    got, exact = (result if isinstance(result, tuple) else (result,) for result in (got, exact))
    reason = "its kernels know float32, float16 and bfloat16, not float64"
    message = f"kernel backend 'triton' leaves {operator} to 'reference': {reason}"
    assert ([torch.equal(*pair) for pair in zip(got, exact)], said()) == ([True] * len(got), [message])


def test_a_linear_layer_of_two_dtypes_is_left_to_the_reference(said):
    rows, weight = torch.ones(2, 3, device=DEVICE), torch.ones(4, 3, dtype=torch.bfloat16, device=DEVICE)
    with backends.forced("triton"):
        out = ops.linear_rows(rows, weight, None)
    assert (out.dtype, "must have one dtype" in said()[0]) == (torch.float32, True)
