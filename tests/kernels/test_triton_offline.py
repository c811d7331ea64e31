"""Triton's kernels as compiled for sm_80, sm_86 and sm_90, without such a GPU: what the compiler says of registers, memory and
instructions. One program compiles them all (`triton_offline.py`); it takes some 45 seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sige.kernels.triton import boxes, compaction, fused, gather, normalization, normalized, product, projection

CAPABILITIES = (80, 86, 90)
SHARED_BYTES = 99 << 10  # what a block may have on sm_86, the least of the three
REGISTERS = {
    "product": 200,
    "_project": 200,
    "_normalize": 80,
    "box_product": 255,  # of two tiles it has a multiprocessor to itself
}  # a thread; 65536 a multiprocessor, so that a block of 256 threads fits
FUSED_REGISTERS = {"product": 220}  # with all that can follow a convolution, of the largest tile
OTHER_REGISTERS = 72
HOPPER, HOPPER_SHARED_BYTES = 90, 227 << 10
PRODUCTS = ("product", "_project")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{(case, capability, kernel): facts}"""
    program = Path(__file__).with_name("triton_offline.py")
    env = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "SIGE_BACKEND")}
    env |= {"PYTHONPATH": str(program.parents[2]), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, str(program), *map(str, CAPABILITIES)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, facts in json.loads(done.stdout).items():
        case, capability, _, kernel = name.rsplit(" ", 3)
        found[case, int(capability.removeprefix("sm_")), kernel] = facts
    return found


@pytest.fixture(params=CAPABILITIES, ids=lambda capability: f"sm_{capability}")
def here(request, compiled):
    """{(case, kernel): facts} of one kind of GPU."""
    return {(case, kernel): facts for (case, sm, kernel), facts in compiled.items() if sm == request.param}


def tensor_core_products(here, word):
    return {case: facts for (case, kernel), facts in here.items() if kernel in PRODUCTS and word in case}


def test_every_kernel_is_compiled(compiled):
    modules = (boxes, compaction, fused, gather, normalization, normalized, product, projection)
    jit = type(product.product)
    kernels = {name for module in modules for name, value in vars(module).items() if type(value) is jit}
    kernels -= {"_corner"}  # part of one
    expected = {(capability, kernel) for capability in CAPABILITIES for kernel in kernels}
    expected -= {(capability, "box_product") for capability in CAPABILITIES if capability < HOPPER}
    assert {(capability, kernel) for _, capability, kernel in compiled} == expected


def test_nothing_is_spilled(here):
    assert {key: facts["local"] for key, facts in here.items() if facts["local"]} == {}


def test_registers_stay_within_budget(here):
    over = {
        key: facts["registers"]
        for key, facts in here.items()
        if facts["registers"] > (FUSED_REGISTERS if "fused" in key[0] else REGISTERS).get(key[1], OTHER_REGISTERS)
    }
    assert over == {}


def test_shared_memory_fits_the_smallest_card(here):
    limits = {"box_product": HOPPER_SHARED_BYTES}
    over = {key: facts["shared"] for key, facts in here.items() if facts["shared"] > limits.get(key[1], SHARED_BYTES)}
    assert over == {}


@pytest.mark.parametrize("word", ["float16", "bfloat16", "tf32"])
def test_products_use_tensor_cores(here, word):
    used = {case: facts["mma"] > 0 for case, facts in tensor_core_products(here, word).items()}
    assert used and all(used.values()), used


def test_exact_float32_uses_none(here):
    used = {case: facts["mma"] for case, facts in tensor_core_products(here, "float32").items()}
    assert used == dict.fromkeys(("conv few rows float32", "conv many rows float32", "fused many rows float32"), 0)


def test_hopper_uses_its_own_instructions(compiled):
    used = {
        case: facts["wgmma"]
        for (case, capability, kernel), facts in compiled.items()
        if capability == 90 and kernel in PRODUCTS and "float32" not in case
    }
    assert used and all(used.values()), used


def test_boxes_are_copied_by_the_accelerator_alone(compiled):
    used = {
        case: (facts["box_copies"] > 0, facts["wide_copies"], facts["wgmma"] > 0)
        for (case, _, kernel), facts in compiled.items()
        if kernel == "box_product"
    }
    assert len(used) == 5 and set(used.values()) == {(True, 0, True)}, used


def test_a_part_of_a_split_sum_is_written_before_its_program_says_so(here):
    counts = {
        case: (facts["arrivals"], facts["released"]) for (case, kernel), facts in here.items() if kernel == "product"
    }
    assert {case for case, pair in counts.items() if pair != (0, 0)} >= {"conv split float16", "fused split float16"}
    assert set(counts.values()) == {(0, 0), (1, 1)}


def test_rows_are_copied_sixteen_bytes_at_a_time_while_the_last_ones_are_multiplied(here):
    # All but three channels, whose rows are too short.
    used = {case: facts["wide_copies"] for case, facts in tensor_core_products(here, "16").items()}
    assert [case for case, copies in used.items() if not copies] == ["conv of 3 channels float16"]
