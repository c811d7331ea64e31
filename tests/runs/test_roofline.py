"""The roofline of a call: the machine's rates measured beside it, the slower of moving and multiplying, shares with intervals."""

from types import SimpleNamespace

import pytest
import torch

from sige.runs.methods import Step, operator
from sige.runs.metrics import roofline


class Zoo:
    device = torch.device("cpu")

    def synchronize(self):
        pass


class Bench:
    """Methods whose steps take fixed milliseconds and whose effects tell given work."""

    zoo = Zoo()

    def __init__(self, **methods):
        self.runners = {name: SimpleNamespace(dtype="float32") for name in methods}
        self.methods, self.ticks = methods, 0
        self.probes = {name: self.step(name) for name in methods}

    def step(self, name):
        ms, effect = self.methods[name]
        return Step(None, ms, effect=effect)

    def tick(self):
        self.ticks += 1


@pytest.fixture
def machine(monkeypatch):
    """Copies at 10 GB/s, multiplies at 100 GFLOP/s by PyTorch and at 200 by the prepacked product."""
    seconds = {"mm": 2 * roofline.SIDE**3 / 100e9, "linear": 2 * roofline.SIDE**3 / 200e9}
    monkeypatch.setattr(
        roofline._Machine, "_seconds", lambda self, name, run: self.moved / 10e9 if name == "copy" else seconds[name]
    )


def read(bench, rounds=4):
    return {(item.method, item.metric): item for item in roofline.collect(bench, rounds, noise_limit=1.0)}


@pytest.mark.parametrize(
    "multiplies, moved, attainable, copy_bound",
    [
        pytest.param(10**9, 10**6, 10.0, 0.0, id="multiplying"),
        pytest.param(10**6, 10**8, 10.0, 1.0, id="copying"),
        pytest.param(0, 10**8, 10.0, 1.0, id="nothing-to-multiply"),
    ],
)
def test_the_slower_of_moving_and_multiplying_is_attainable(machine, multiplies, moved, attainable, copy_bound):
    found = read(Bench(kernel=(20.0, operator.Work(multiplies, moved))))
    assert found["kernel", "attainable"].value == pytest.approx(attainable)
    assert found["kernel", "copy_bound"].value == copy_bound
    assert found["kernel", "roofline"].value == pytest.approx(attainable / 20)


def test_the_rates_are_the_machines(machine):
    found = read(Bench(kernel=(20.0, operator.Work(1, 10**8))))
    assert found["kernel", "copy_rate"].value == pytest.approx(10)
    assert found["kernel", "gemm_rate"].value == pytest.approx(200)


def test_each_method_has_a_share_and_the_first_one_the_rates(machine):
    work = operator.Work(10**9, 10**6)
    found = read(Bench(kernel=(20.0, work), composed=(40.0, work)))
    assert found["composed", "roofline"].value == pytest.approx(0.25)
    assert [method for method, metric in found if metric == "gemm_rate"] == ["kernel"]


def test_every_round_is_a_sign_of_life(machine):
    bench = Bench(kernel=(20.0, operator.Work(1, 1)))
    read(bench, rounds=3)
    assert bench.ticks == 3


def test_a_step_of_a_network_has_no_roofline(machine):
    assert read(Bench(sige=(20.0, SimpleNamespace(macs=5)), dense=(20.0, None))) == {}


def test_this_machines_rates_are_above_zero():
    found = read(Bench(kernel=(20.0, operator.Work(10**6, 10**5))), rounds=1)
    assert found["kernel", "copy_rate"].value > 0 and found["kernel", "gemm_rate"].value > 0
