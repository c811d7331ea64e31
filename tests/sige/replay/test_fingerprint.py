"""What tells calls apart, and that another process would tell them apart the same way."""

import enum

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sige.replay.fingerprint import _PROCESS, Calls, described, name_of

T = torch.Tensor


class Mode(enum.Enum):
    FAST = 1


def key(*calls):
    """The key of a forward that made these (function, arguments, keyword arguments), each giving a map."""
    noted = Calls()
    for func, args, kwargs in calls:
        noted.add(func, args, kwargs, torch.zeros(1), ())
    return noted.key()


def test_equal_calls_have_equal_keys():
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    assert key((F.silu, (x,), {"inplace": False})) == key((F.silu, (y,), {"inplace": False}))


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param((torch.mul, (2,), {}), (torch.mul, (2.0,), {}), id="a number's type"),
        pytest.param((torch.mul, (-1,), {}), (torch.mul, (-2,), {}), id="numbers of one hash"),
        pytest.param((torch.mul, (1,), {}), (torch.mul, (True,), {}), id="one and true"),
        pytest.param((torch.mul, (0.0,), {}), (torch.mul, (-0.0,), {}), id="a zero's sign"),
        pytest.param((torch.mul, ("1",), {}), (torch.mul, (1,), {}), id="text and number"),
        pytest.param((torch.mul, ("1,1",), {}), (torch.mul, ("1", "1"), {}), id="a comma in a text"),
        pytest.param((torch.mul, ((1, 2), 3), {}), (torch.mul, (1, (2, 3)), {}), id="nesting"),
        pytest.param((torch.add, (1,), {}), (torch.mul, (1,), {}), id="function"),
        pytest.param((torch.add, (1,), {}), (T.add, (1,), {}), id="function and method"),
        pytest.param((T.shape.__get__, (), {}), (T.dtype.__get__, (), {}), id="property"),
        pytest.param((torch.add, (), {"dim": 1}), (torch.add, (), {"out": 1}), id="an argument's name"),
        pytest.param(
            (torch.add, (torch.zeros(2, 3),), {}), (torch.add, (torch.zeros(3, 2),), {}), id="a tensor's shape"
        ),
        pytest.param(
            (torch.add, (torch.zeros(2),), {}), (torch.add, (torch.zeros(2).int(),), {}), id="a tensor's type"
        ),
        pytest.param((torch.add, (slice(0, 2),), {}), (torch.add, (slice(0, 3),), {}), id="a slice"),
        pytest.param((torch.add, (np.zeros(9999),), {}), (torch.add, (np.arange(9999) == 5000.0,), {}), id="an array"),
        pytest.param((torch.add, (torch.Generator(),), {}), (torch.add, (Mode,), {}), id="an object"),
    ],
)
def test_calls_that_differ_have_other_keys(one, other):
    assert key(one) != key(other)


def test_two_objects_are_told_apart():
    one, other = torch.Generator(), torch.Generator()
    assert key((torch.add, (one,), {})) != key((torch.add, (other,), {}))


def test_the_order_of_calls_counts():
    one, other = (torch.add, (1,), {}), (torch.mul, (1,), {})
    assert key(one, other) != key(other, one)


def test_calls_on_conditioning_count_apart():
    first, second = Calls(), Calls()
    known = torch.zeros(1)
    for noted, number in ((first, 1), (second, 2)):
        noted.add(torch.mul, (number,), {}, known, [known])
        noted.add(torch.add, (1,), {}, torch.zeros(1), [])
    (of_maps, of_all), (same_maps, other_all) = first.key(), second.key()
    assert (of_maps == same_maps, of_all == other_all) == (True, False)


def test_a_model_that_looks_at_values_has_no_key():
    assert key((T.item, (torch.zeros(1),), {})) is None


@pytest.mark.parametrize(
    "value, text",
    [
        pytest.param(torch.Size([1, 2]), "(1,2)", id="size"),
        pytest.param({"b": 1, "a": None}, "{'a':None,'b':1}", id="arguments in any order"),
        pytest.param({"x", "y"}, "set('x','y')", id="set"),
        pytest.param(torch.zeros(2, 3), "plain(2, 3)torch.float32", id="tensor"),
        pytest.param(torch.channels_last, "torch.channels_last", id="layout"),
        pytest.param(torch.add, "torch._VariableFunctionsClass.add", id="function"),
    ],
)
def test_data_is_described_by_what_it_says(value, text):
    assert described(value) == text


@pytest.mark.parametrize(
    "func, name",
    [
        pytest.param(T.add, "torch._C.TensorBase.add", id="method"),
        pytest.param(F.silu, "torch.nn.functional.silu", id="Python's"),
        pytest.param(F.max_pool2d, "torch.nn.functional.max_pool2d", id="made inside another"),
        pytest.param(T.shape.__get__, "torch._C.TensorBase.shape.__get__", id="property"),
        pytest.param(torch.ops.aten.add.Tensor, "torch._ops.aten.aten::add.Tensor", id="operator"),
    ],
)
def test_functions_are_named_by_module_and_name(func, name):
    assert name_of(func) == name


@pytest.mark.parametrize(
    "value", [lambda: 1, torch.Generator(), [].append], ids=["lambda", "object", "method of an object"]
)
def test_what_only_this_process_knows_says_so(value):
    assert _PROCESS in described(value)
