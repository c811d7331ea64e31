"""The shim that runs Metal's kernels on a CPU notices what it is there to notice: kernels that are wrong do not pass."""

import re
import shutil

import pytest
import torch

import sige  # noqa: F401
from sige.kernels.mps import gather, launch

_HEAD = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"
_PLACE = "device float* out [[buffer(0)]], constant long* sizes [[buffer(1)]], uint at [[thread_index_in_threadgroup]]"
WRONG = {
    "write behind the end": ("out[at + 1] = 1.0f;", "heap-buffer-overflow"),
    "read before the beginning": ("out[at] = out[long(at) - 1];", "heap-buffer-overflow"),
    "read behind the sizes": ("out[at] = float(sizes[1]);", "heap-buffer-overflow"),
    "write behind threadgroup memory": (
        "threadgroup float t[32]; t[sizes[0] + at] = 1.0f; out[at] = t[at];",
        "index [0-9]+ out of bounds",
    ),
    "matrix that reaches behind threadgroup memory": (
        "threadgroup float t[32]; t[at] = 1.0f; simdgroup_matrix<float, 8, 8> m; simdgroup_load(m, t); out[at] = t[at];",
        "global-buffer-overflow",
    ),
    "signed overflow": ("int x = 2147483647; out[at] = float(x + int(sizes[0]));", "signed integer overflow"),
    "division by zero": ("out[at] = float(1 / (int(sizes[0]) - 32));", "division by zero"),
    "barrier that half the threads reach": (
        "if (at < 16) { threadgroup_barrier(mem_flags::mem_threadgroup); } out[at] = 1.0f;",
        "threads of one threadgroup are at different barriers",
    ),
    "simdgroup operation that half the lanes reach": (
        "simdgroup_matrix<float, 8, 8> m; if (at < 16) { m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f); } out[at] = 1.0f;",
        "lanes of one simdgroup carried out 1 and 0 simdgroup operations",
    ),
}


def without_barriers():
    """{name: (file, types, text)} of our kernels, each with one barrier left out."""
    product = dict.fromkeys(("T_SOURCE", "T_WEIGHT", "T_BIAS", "T_OUT", "T_FACTOR"), "float")
    norm = dict.fromkeys(("T_ROW", "T_SUM"), "float")
    found = {}
    for file, types in (("convolution", product), ("statistics", norm)):
        text = launch.text(file, tuple(types.items()))
        for i, match in enumerate(re.finditer(r"threadgroup_barrier\(.*?\);", text)):
            found[f"{file} barrier {i}"] = text[: match.start()] + text[match.end() :]
    return found


def texts():
    """Every wrong text: a kernel `wrong`, or ours without a barrier."""
    made = {
        name: f"{_HEAD}kernel void wrong({_PLACE})\n{{\n    (void)sizes;\n    {body}\n}}\n"
        for name, (body, _) in WRONG.items()
    }
    return made | without_barriers()


@pytest.fixture(scope="module")
def wrong(shim_module, tmp_path_factory):
    made = shim_module.Shim(texts().values(), tmp_path_factory.mktemp("wrong"))
    yield made
    made.close()


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_kernel_is_caught(wrong, name):
    kernel = wrong.library(texts()[name]).wrong
    with pytest.raises(AssertionError, match=WRONG[name][1]):
        kernel(torch.ones(32), [32], threads=[32], group_size=[32])


def test_the_shim_goes_on_after_a_wrong_kernel(wrong, shimmed):
    with pytest.raises(AssertionError):
        wrong.library(texts()["division by zero"]).wrong(torch.ones(32), [32], threads=[32], group_size=[32])
    test_no_barrier_can_be_left_out(wrong, "convolution barrier 0")


def product_is_right(library):
    rows, weight = torch.arange(32.0 * 128).view(32, 128) % 7, torch.arange(64.0 * 128).view(64, 128) % 5
    out = torch.full((32, 64), float("nan"))
    sizes = [32, 128, 128, 64, 128, 1, 0, 1, 128, 0, 1]
    library.rows_product(rows, weight, weight, weight, out, out, sizes, threads=[128, 1, 1], group_size=[128, 1, 1])
    return torch.equal(out, rows @ weight.t())


def sums_are_right(library):
    rows, zeros = torch.arange(64.0 * 6).view(64, 6) % 7, torch.zeros(1, 6)
    sums, old, change = torch.full((3, 1, 6), float("nan"))
    place, sizes = torch.zeros(1, dtype=torch.long), [64, 2, 3, 6, 1, 6, 1, 0]
    library.exchange_sums(rows, sums, place, zeros, place, old, change, sizes, threads=[3 * 64], group_size=[64])
    values = rows.view(64, 3, 2)
    return torch.equal(sums, torch.cat([values.sum((0, 2)), values.square().sum((0, 2))])[None])


def totals_are_right(library):
    change, none, place = torch.arange(80.0 * 6).view(80, 6) % 7, torch.zeros(1, 6), torch.zeros(1, dtype=torch.long)
    after, scale, shift = torch.full((3, 1, 6), float("nan"))
    arguments = (change, none, none, place, none, none, after, scale, shift, [80, 2, 3, 0, 1000, 0, 0, 0])
    library.merge_statistics(*arguments, threads=[3 * 64], group_size=[64])
    first, second = change.sum(0).view(2, 3)
    exact = (second / 1000 - (first / 1000).square()).rsqrt().repeat_interleave(2)
    return torch.equal(after[0], change.sum(0)) and torch.allclose(scale[0], exact)


def is_right(library):
    if hasattr(library, "rows_product"):
        return product_is_right(library)
    return sums_are_right(library) and totals_are_right(library)


@pytest.mark.parametrize("name", list(without_barriers()))
def test_no_barrier_can_be_left_out(wrong, name):
    # Threads take turns in another order at every launch: one of them shows it.
    assert not all([is_right(wrong.library(texts()[name])) for _ in range(8)])


@pytest.mark.parametrize("file", ["convolution", "statistics"])
def test_with_all_its_barriers_the_kernel_is_right(metal_shim, file):
    names = {"convolution": ("SOURCE", "WEIGHT", "BIAS", "OUT", "FACTOR"), "statistics": ("ROW", "SUM")}
    library = metal_shim.library(launch.text(file, tuple((f"T_{name}", "float") for name in names[file])))
    assert all([is_right(library) for _ in range(8)])


def test_a_text_that_was_not_compiled_is_refused(metal_shim):
    with pytest.raises(AssertionError, match="^a text was launched that was not compiled; it begins 'kernel void x"):
        metal_shim.library("kernel void x() {}")


def test_without_a_compiler_one_sentence_says_what_to_install(shim_module, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    message = (
        "^no C\\+\\+ compiler was found: .* so install g\\+\\+ \\(12 or newer\\) or clang\\+\\+, or name one in CXX$"
    )
    with pytest.raises(RuntimeError, match=message):
        shim_module.compiler()


# The shim's 16-bit numbers are those of PyTorch.


def bit_patterns():
    """float32 numbers of every exponent, near and at the places where 16 bits round, overflow and vanish."""
    high = torch.arange(0, 1 << 16, 3, dtype=torch.int32) << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF], dtype=torch.int32)
    return (high[:, None] | low).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat"])
def test_numbers_are_rounded_to_16_bits_as_pytorch_does(shimmed, dtype):
    rows = bit_patterns()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:3000]]
    got = torch.zeros(rows.shape, dtype=dtype)
    gather.scatter_rows_(got, torch.arange(len(rows)), rows)
    expected = rows.to(dtype)
    same = (got.view(torch.int16) == expected.view(torch.int16)) | (got.isnan() & expected.isnan())
    assert bool(same.all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat"])
def test_every_16_bit_number_is_read_as_pytorch_does(shimmed, dtype):
    rows = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).view(1024, 64)
    got = torch.zeros(rows.shape)
    gather.scatter_rows_(got, torch.arange(len(rows)), rows)
    assert torch.allclose(got, rows.float(), rtol=0, atol=0, equal_nan=True)
