"""A tracer numbers tensors while they live, and keeps none alive that the step made."""

import weakref

import pytest
import torch

from sige.replay.tracer import Tracer


class NoMemory:
    """What a tracer asks of a step's memory, with nothing in it."""

    entries, output = {}, ()


@pytest.fixture
def traced():
    """(a tracer, its input): still outside the ``with`` block."""
    x = torch.arange(6.0).view(2, 3)
    return Tracer([x], NoMemory()), x


def test_what_the_step_made_dies_with_its_last_use(traced):
    tracer, x = traced
    with tracer:
        made = weakref.ref(x + 1)
    assert made() is None


def test_a_tensor_in_the_place_of_a_dead_one_is_another(traced):
    tracer, x = traced
    with tracer:
        for _ in range(3):
            x + 1  # each may get the id of the one before
    assert len({int(call[3][0]) for call in tracer.calls}) == 3


def test_a_tensor_from_before_the_step_is_a_constant(traced):
    tracer, x = traced
    weight = torch.ones(2, 3)
    with tracer:
        x * weight
    number = tracer.calls[0][1][1]
    assert tracer.leaves[number][1] is weight


def test_a_view_of_a_constant_is_a_constant_and_no_call(traced):
    tracer, x = traced
    weight = torch.ones(3, 2)
    with tracer:
        turned = weight.t()
        x * turned
    assert [call[0] for call in tracer.calls] == [torch.ops.aten.mul.Tensor]
    assert tracer.leaves[tracer.calls[0][1][1]][1] is turned


def test_a_view_of_an_input_is_a_call(traced):
    tracer, x = traced
    with tracer:
        x.t()
    assert [call[0] for call in tracer.calls] == [torch.ops.aten.t.default]
