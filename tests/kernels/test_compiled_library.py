"""The compiled kernels of the CPU: built once, kept, and done without where they cannot be built."""

import platform
import subprocess
import types

import pytest
import torch
import torch.nn.functional as F

from sige.kernels import backends, ops
from sige.kernels.cpu import fused, library, panels, product


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def can_be_built():
    try:
        library.compiler()
    except library.Unbuilt:
        return False
    return True


built = pytest.mark.skipif(not can_be_built(), reason="there is no C++ compiler, or this is not Linux")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; nothing is remembered of a library that was built or said to be missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "_declined", [])
    library.library.cache_clear()
    yield tmp_path / "sige" / "kernels"
    library.library.cache_clear()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A source of one function in place of the kernels: how a library is kept does not hang on what is in it."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" long vector_width() { return 1; }')
    monkeypatch.setattr(library, "HEADERS", [])
    monkeypatch.setattr(library, "SOURCES", [source])
    monkeypatch.setattr(library, "_ARGUMENTS", {"vector_width": ""})


def an_edit():
    """conv_rows on some of a map's rows, and what it should be."""
    source, weight = random(30, 24), random(40, 24, 1, 1, seed=1)
    index = torch.tensor([[3], [-1], [29]])
    exact = F.linear(torch.cat([source, torch.zeros(1, 24)])[index.flatten()], weight.flatten(1))
    return ops.conv_rows(source, index, weight, None), exact


@built
def test_it_is_built_into_the_cache_folder_and_nothing_else_is_left_there(cache):
    got, exact = an_edit()
    files = [path.suffix for path in cache.iterdir()]
    assert (files, torch.allclose(got, exact, atol=1e-5), backends.declined()) == ([".so"], True, ())


@built
def test_it_is_built_once(cache, small, monkeypatch):
    library.library()
    library.library.cache_clear()
    monkeypatch.setattr(library, "_build", None)
    assert library.library() is not None


@built
def test_another_compiler_option_makes_another_library(cache, small, monkeypatch):
    library.library()
    library.library.cache_clear()
    monkeypatch.setattr(library, "_COMPILE", (*library._COMPILE, "-DANOTHER"))
    library.library()
    assert len(list(cache.iterdir())) == 2


@built
def test_where_the_cache_folder_cannot_be_written_it_is_built_elsewhere(cache, small, tmp_path):
    (tmp_path / "sige").write_text("a file in the folder's place")
    assert library.library() is not None


CANNOT = {
    "no compiler": ({"CXX": "no-such-compiler"}, "there is no C++ compiler 'no-such-compiler'"),
    "a compiler that fails": ({"CXX": "false"}, "false failed: no message"),
}


@pytest.mark.parametrize("environment, reason", CANNOT.values(), ids=CANNOT)
def test_without_it_products_are_composed_and_the_reason_is_said_once(cache, monkeypatch, caplog, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(library.platform, "system", lambda: "Linux")
    results = [an_edit() for _ in range(3)]
    said = [record.getMessage() for record in caplog.records]
    assert all(torch.allclose(*result, atol=1e-5) for result in results)
    assert (len(said), reason in said[0], list(backends.declined())) == (1, True, said)


@pytest.mark.parametrize("answer, said", [(1, 0), (0, 0), (-1, 1)], ids=["it may", "it cannot", "it is not let"])
def test_a_system_that_keeps_the_cpus_tiles_to_itself_is_named(monkeypatch, answer, said):
    monkeypatch.setattr(backends, "_declined", [])
    monkeypatch.setattr(product, "library", lambda: types.SimpleNamespace(multiplies_tiles=lambda: answer))
    weight = random(8, 8, 3, 3).bfloat16()
    product._multiplies_tiles.cache_clear()
    multiplied = [product.multiplied(9, random(9, 8).bfloat16(), weight) for _ in range(2)]
    product._multiplies_tiles.cache_clear()
    assert (multiplied, len(backends.declined())) == ([answer > 0] * 2, said)


def test_it_is_not_built_on_a_mac(monkeypatch):
    monkeypatch.setattr(library.platform, "system", lambda: "Darwin")
    with pytest.raises(library.Unbuilt, match="on Linux, not on Darwin"):
        library.compiler()


@built
def test_a_library_that_cannot_be_loaded_is_a_reason(tmp_path):
    (tmp_path / "rows.so").write_text("not a library")
    with pytest.raises(library.Unbuilt, match="cannot be loaded"):
        library._open(tmp_path / "rows.so")


@built
def test_threads_are_those_of_pytorch():
    """Linked to no OpenMP of its own: there would be two pools of threads, each waiting while the other works."""
    path = next(library.folder().glob("*.so"))
    needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    assert "omp" not in needed


@pytest.fixture
def compiled():
    if library.library() is None:
        pytest.skip("the compiled kernels cannot be built here")


# Of results: none, fewer than a block holds, one block and a bit, several chunks. Of outputs: a lane, a vector and a bit, one panel,
# three and a bit. Of input channels: one, a burst and a bit, more than are summed at a time.
COUNTS, OUTPUTS, CHANNELS = (0, 1, 5, 13, 1700), (1, 17, 32, 103), (1, 19, 1030)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("count", COUNTS)
def test_products_of_every_shape(compiled, count, outputs, channels):
    source, weight, bias = random(50, channels), random(outputs, channels, 2, 1, seed=1), random(outputs, seed=2)
    index = torch.randint(-1, 50, (count, 2), generator=torch.Generator().manual_seed(3))
    taps = torch.cat([source, torch.zeros(1, channels)])[index].double()
    exact = torch.einsum("ntc,oct->no", taps, weight[..., 0].double()) + bias
    got = product.product(source, index, weight, bias, count)
    assert got.shape == exact.shape
    assert torch.allclose(got.double(), exact, atol=2e-5 * channels**0.5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(compiled, threads):
    source, weight, index = random(60, 40), random(70, 40, 3, 3, seed=1), torch.randint(-1, 60, (90, 9))
    once = product.product(source, index, weight, None, 90)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        again = product.product(source, index, weight, None, 90)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(once, again)


@pytest.fixture(scope="module")
def narrower(tmp_path_factory):
    """``narrower(option)``: the kernels compiled for a CPU with narrower vectors, each once."""
    made = {}

    def get(option):
        if option not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(library, "_COMPILE", (*library._COMPILE, option))
                path = tmp_path_factory.mktemp("narrower") / "cpu.so"
                library._build(path)
                made[option] = library._open(path)
        return made[option]

    return get


@built
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize("option, lanes", [("-mno-avx512f", 8), ("-mno-avx", 4)], ids=["256 bits", "128 bits"])
def test_narrower_vectors(narrower, monkeypatch, option, lanes):
    for module in (product, panels):
        monkeypatch.setattr(module, "library", lambda: narrower(option))
    source, weight, index = random(60, 40), random(71, 40, 3, 3, seed=1), torch.randint(-1, 60, (90, 9))
    got, before = product.product(source, index, weight, None, 90), narrower(option).vector_width()
    taps = torch.cat([source, torch.zeros(1, 40)])[index].double()
    exact = torch.einsum("ntc,oct->no", taps, weight.flatten(2).double())
    apart = product.product(source, index, weight[:40, :1].contiguous(), None, 90)
    exact_apart = torch.einsum("ntc,ct->nc", taps, weight[:40, 0].flatten(1).double())
    found = [torch.allclose(made.double(), each, atol=1e-4) for made, each in ((got, exact), (apart, exact_apart))]
    assert (before <= lanes, found) == (True, [True, True])


@built
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize("option", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx"])
def test_rounding_to_bfloat16_without_an_instruction_for_it(narrower, monkeypatch, option):
    monkeypatch.setattr(product, "library", lambda: narrower(option))
    rows = torch.cat([random(64, 37), torch.full((1, 37), float("nan")), torch.full((1, 37), float("inf"))]).bfloat16()
    scale, shift = random(1, 37, seed=1).bfloat16(), random(1, 37, seed=2).bfloat16()
    exact = (rows.double() * scale.double() + shift.double()).float().bfloat16()
    assert torch.equal(
        fused.activate_rows(rows, scale, shift, None, "none", 0.0, None, None).nan_to_num(7), exact.nan_to_num(7)
    )


NARROW = {
    "three outputs": (1, 40, 33, 24, 3, (3, 3)),
    "one output": (2, 17, 9, 16, 1, (3, 3)),
    "four outputs, two panels of taps": (1, 9, 20, 30, 4, (3, 3)),
    "fifteen outputs": (1, 8, 8, 16, 15, (3, 3)),
    "five by three": (2, 11, 12, 16, 2, (5, 3)),
    "smaller than the kernel": (1, 2, 1, 16, 3, (3, 3)),
}


@pytest.mark.parametrize("batch, height, width, channels, outputs, kernel", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_a_whole_map_to_a_few_channels(compiled, biased, batch, height, width, channels, outputs, kernel):
    image = random(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    weight, bias = random(outputs, channels, *kernel, seed=1), random(outputs, seed=2) if biased else None
    padding = tuple(side // 2 for side in kernel)
    exact = F.conv2d(image.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    assert torch.allclose(product.narrow_map(image, weight, bias).double(), exact, atol=1e-4)


def through_norm_and_activation(batch, height, width, channels, outputs, kernel):
    """What the compiled kernels make of a map far from zero, through norm, activation and a narrow convolution, and what is exact."""
    image = (random(batch, channels, height, width) + 30).contiguous(memory_format=torch.channels_last)
    weight, scale, shift = (
        random(outputs, channels, *kernel, seed=1),
        random(channels, seed=2),
        random(channels, seed=3),
    )
    affine = product.map_affine(image, 2, scale, shift, 1e-5)
    got = product.narrow_map(image, weight, None, *affine, "silu")
    exact = F.silu(F.group_norm(image.double(), 2, scale.double(), shift.double()))
    return got, F.conv2d(exact, weight.double(), padding=tuple(side // 2 for side in kernel))


@pytest.mark.parametrize("shape", NARROW.values(), ids=NARROW)
def test_a_whole_map_through_norm_and_activation(compiled, shape):
    got, exact = through_norm_and_activation(*shape)
    assert torch.allclose(got.double(), exact, atol=2e-4)


@built
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize("option", ["-mno-avx512f", "-mno-avx"], ids=["256 bits", "128 bits"])
def test_a_whole_map_in_narrower_vectors(narrower, monkeypatch, option):
    for module in (product, panels):
        monkeypatch.setattr(module, "library", lambda: narrower(option))
    got, exact = through_norm_and_activation(2, 11, 40, 36, 3, (3, 3))
    assert torch.allclose(got.double(), exact, atol=2e-4)


@pytest.mark.parametrize("pixels", [1, 255, 256, 1023], ids=lambda count: f"{count} pixels")
@pytest.mark.parametrize("groups", [1, 4, 24])
def test_a_whole_maps_statistics(compiled, groups, pixels):
    image = (0.01 * random(2, 24, pixels, 3) + 7).contiguous(memory_format=torch.channels_last)
    scale, shift = product.map_affine(image, groups, None, None, 1e-6)
    made = image.double() * scale[:, :, None, None].double() + shift[:, :, None, None].double()
    exact = F.group_norm(image.double(), groups, eps=1e-6)
    assert torch.allclose(made, exact, atol=1e-3)


@pytest.mark.parametrize("stride, padding, dilation", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 1)])
def test_a_map_of_a_few_positions(compiled, stride, padding, dilation):
    image, weight, bias = random(2, 20, 7, 5), random(40, 20, 3, 3, seed=1), random(40, seed=2)
    pairs = (stride, stride), (padding, padding), (dilation, dilation)
    got = ops.conv_map(image, weight, bias, *pairs)
    assert torch.allclose(got, F.conv2d(image, weight, bias, *pairs), atol=1e-4)


def test_row_numbers_may_have_32_bits(compiled):
    source, weight = random(30, 24), random(40, 24, 1, 1, seed=1)
    index = torch.tensor([[3], [-1], [29]])
    whole = ops.conv_rows(source, index, weight, None)
    assert torch.equal(ops.conv_rows(source, index.int(), weight, None), whole)


def test_the_map_written_may_be_the_map_read(compiled):
    """A product that exchanges rows of its own source reads them as they were."""
    source, weight, places = random(40, 16), random(16, 16, 3, 3, seed=1), torch.arange(0, 40, 2)
    index = torch.randint(-1, 40, (20, 9), generator=torch.Generator().manual_seed(2))
    exact, before = ops.conv_rows(source, index, weight, None), source.clone()
    _, old = ops.conv_rows_fused(source, index, weight, target=source, positions=places)
    assert (torch.equal(source[places], exact), torch.equal(old, before[places])) == (True, True)


@pytest.mark.parametrize("value", [-200.0, -90.0, -1e-30, 0.0, 1e-30, 90.0, 200.0])
def test_silu_at_the_ends_of_what_floats_hold(compiled, value):
    rows = torch.full((1, 16), value)
    got = ops.activate_rows(rows, activation="silu")
    assert torch.allclose(got.double(), F.silu(rows.double()), rtol=1e-6, atol=1e-36)


def test_silu_is_right_to_the_last_bits(compiled):
    rows = torch.linspace(-80, 80, 64_000).view(-1, 64)
    exact = F.silu(rows.double())
    got = ops.activate_rows(rows, activation="silu").double()
    assert ((got - exact).abs() / exact.abs().clamp(min=1e-30)).max() < 6e-7


@built
@pytest.mark.parametrize(
    "operator, kernel",
    [
        pytest.param(
            lambda: ops.conv_rows(random(30, 24), torch.zeros(5, 9, dtype=torch.long), random(8, 24, 3, 3), None),
            "sige::conv_rows",
            id="convolution",
        ),
        pytest.param(
            lambda: ops.activate_rows(torch.ones(4, 16), activation="silu"), "sige::activate_rows", id="activation"
        ),
    ],
)
def test_a_profiler_is_told_of_compiled_kernels(operator, kernel):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        operator()
    times = [event.self_cpu_time_total for event in profiler.events() if event.name.startswith(kernel)]
    assert times and min(times) > 0
