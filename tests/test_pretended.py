"""A GPU's rules, kept by the GPU that is not there."""

import pytest
import torch
from pretended import Pretended, gpu
from torch import nn

MAKERS = {
    "zeros": lambda: torch.zeros(3, device="cuda"),
    "tensor": lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
    "arange": lambda: torch.arange(3, device="cuda:0"),
    "to": lambda: torch.ones(3).to("cuda"),
    "to with a dtype": lambda: torch.ones(3).to("cuda", torch.float64),
    "cuda": lambda: torch.ones(3).cuda(),
    "of another": lambda: torch.ones(3).to(torch.zeros(1, device="cuda")),
    "new": lambda: torch.zeros(1, device="cuda").new_empty(3),
    "a parameter": lambda: nn.Linear(3, 3).to("cuda").weight,
    "a result": lambda: torch.ones(3, device="cuda") + 1,
}
WAITING = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "a branch": lambda x: bool(x.any()),
    "nonzero": lambda x: x.nonzero(),
    "by a mask": lambda x: x[x > 1],
    "written by a mask": lambda x: x.__setitem__(x > 1, torch.zeros(1, dtype=x.dtype, device="cuda")),
    "copied home": lambda x: torch.empty(3).copy_(x),
    "to the CPU": lambda x: x.to("cpu", torch.float64),
    "sent": lambda x: torch.ones(3).to(x.device),
    "sent into it": lambda x: x.copy_(torch.ones(3)),
}


@pytest.fixture(autouse=True)
def waits():
    with gpu() as waits:
        yield waits


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in MAKERS.items()])
def test_what_is_asked_for_there_is_there(make):
    made = make()
    assert (isinstance(made, Pretended), str(made.device)) == (True, "cuda:0")


@pytest.mark.parametrize(
    "mix",
    [
        pytest.param(lambda x, y: x + y, id="sum"),
        pytest.param(lambda x, y: torch.where(y > 0, x, x), id="choice"),
        pytest.param(lambda x, y: torch.cat([x, y]), id="concatenation"),
    ],
)
def test_tensors_of_two_devices_are_refused(mix):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(torch.ones(3, device="cuda"), torch.ones(3))


def test_a_single_number_of_the_cpu_is_taken():
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("ask", [pytest.param(ask, id=name) for name, ask in WAITING.items()])
def test_what_the_host_waits_for_is_written_down(waits, ask):
    x = torch.arange(3, device="cuda")
    assert waits == []
    ask(x)
    assert len(waits) == 1


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda x: torch.nn.functional.conv2d(x, x).relu().mean((2, 3)), id="arithmetic"),
        pytest.param(lambda x: x[:, torch.zeros(1, dtype=torch.int64, device="cuda")], id="rows by their numbers"),
        pytest.param(lambda x: torch.ones(3).to(x.device, non_blocking=True), id="sent on the way"),
    ],
)
def test_what_the_host_need_not_wait_for_is_not(waits, work):
    work(torch.ones(1, 3, 8, 8, device="cuda"))
    assert waits == []


def test_a_view_is_the_same_memory():
    x = torch.zeros(2, 3, device="cuda")
    x[1].add_(1)
    assert (x.tolist(), x[1].untyped_storage()._cdata) == ([[0, 0, 0], [1, 1, 1]], x.untyped_storage()._cdata)
