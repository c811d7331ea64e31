"""How many kernels a replayed step of the church DDPM's network would launch on a GPU, counted by shapes on the CPU."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

import sige
from sige.kernels import backends
from sige.replay import replay
from sige.replay.launches import launches
from sige.replay.tracer import Look, Ref

NARROWER = 32  # times fewer channels than the real one


@pytest.fixture(scope="module")
def church():
    """The church U-Net of conf/model, layer by layer, with few channels."""
    from diffusers import UNet2DModel

    config = OmegaConf.to_container(OmegaConf.load(sige.paths.conf_dir() / "model" / "ddpm_church256.yaml"))["config"]
    config["block_out_channels"] = [width // NARROWER for width in config["block_out_channels"]]
    config["norm_num_groups"] = 4
    torch.manual_seed(0)
    return UNet2DModel(**config).eval().requires_grad_(False)


def program_of(model, name, monkeypatch):
    """The program of an edit of 1.2 % of the picture with every level sparse and, as on a GPU, no convolution by whole tiles."""
    made, make = [], replay.Program
    monkeypatch.setattr(backends, "merges", lambda device_type: True)
    monkeypatch.setattr(replay, "Program", lambda *args: made.append(make(*args)) or made[-1])
    policy = dataclasses.replace(
        sige.policy(name), min_resolution=1, upsample_min_source=1, dense_above=None, whole_tiles="never"
    )
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[100:128, 60:88] = True
    original = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    session = sige.Session(model, policy)
    times = [torch.tensor(time) for time in (700, 500, 300, 100)]
    with session.record():
        for time in times:
            model(original, time)
    with session.edit(mask):
        for time in times:
            model(original + mask, time)
    assert session.replayed_steps == 2
    return made[-1]


@pytest.mark.parametrize("name, most", [("sige", 139), ("incremental", 189)])
def test_launches_of_a_church_step(church, monkeypatch, name, most):
    found = program_of(church, name, monkeypatch).launches
    assert 0.9 * most < found <= most


def count(func, args, shapes, dtype=torch.float16):
    """Launches of one call; the last of ``shapes`` is its result's."""
    looks = {number: Look(shape, dtype, number) for number, shape in enumerate(shapes)}
    return launches([(func, tuple(args), {}, [Ref(len(shapes) - 1)])], looks)


def test_a_split_sum_is_one_launch():
    shapes = [(9, 512), (64, 9), (512, 512, 3, 3), (64, 512)]
    assert count(torch.ops.sige.conv_rows.default, (Ref(0), Ref(1), Ref(2), None, 1), shapes) == 1


def test_a_view_is_none_and_an_operator_of_pytorch_one():
    found = [
        count(func, (Ref(0),), [(3, 3), (3, 3)]) for func in (torch.ops.aten.t.default, torch.ops.aten.silu.default)
    ]
    assert found == [0, 1]


def test_without_rows_nothing_is_launched():
    shapes = [(9, 16), (0, 9), (16, 16, 3, 3), (0, 16)]
    assert count(torch.ops.sige.conv_rows.default, (Ref(0), Ref(1), Ref(2), None, 1), shapes) == 0


@pytest.mark.parametrize(
    "tiles, expected", [pytest.param(4, 1, id="few tiles"), pytest.param(1000, 2, id="many tiles")]
)
def test_statistics_of_many_tiles_are_two_launches(tiles, expected):
    shapes = [(tiles * 64, 128), (1024, 64), (tiles,), (1, 32), (1, 64), (tiles, 64)]
    args = (*map(Ref, range(5)), None, None, None, 32, 1 << 18, 1e-5)
    assert count(torch.ops.sige.update_statistics_.default, args, shapes) == expected
