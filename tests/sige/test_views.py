"""Writes in place to views of active tensors: what cannot be followed is refused, everything else goes on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige.errors import ModelError

SIDE = 16
POLICY = sige.Policy(block=4, dilation=1, min_resolution=4)


class Net(nn.Module):
    """A 3x3 convolution, ``body(x)`` in a module named ``middle``, a 3x3 convolution."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Module(), nn.Conv2d(8, 4, 3, padding=1)
        self.middle.forward = body

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def edit(body):
    """(after, dense) of an edit of the whole map."""
    model, generator = Net(body).eval(), torch.Generator().manual_seed(1)
    x, other = (torch.randn(1, 4, SIDE, SIDE, generator=generator) for _ in range(2))
    session = sige.Session(model, POLICY)
    with torch.no_grad():
        with session.record():
            model(x)
        with session.edit(torch.ones(SIDE, SIDE, dtype=torch.bool)):
            after = model(other)
        return after, model(other)


def through_view(y):
    z = y.view(1, 8, SIDE * SIDE)
    z.add_(1)
    return y


def through_transposed(y):
    y.flatten(2).transpose(1, 2).mul_(2)
    return y * y


def through_unsqueezed(y):
    z = y.unsqueeze(1)
    z += 1
    return y + z[:, 0]


def through_activation(y):
    F.relu(y.permute(0, 2, 3, 1), inplace=True)
    return y


def through_part(y):
    first, _ = y.chunk(2, 1)
    first.mul_(2)
    return y


def through_channel(y):
    z = y[:, 2:4]
    z.sub_(1)
    return y


def under_a_view(y):
    z = y.flatten(2)
    y.add_(1)
    return z.view(y.shape)


def through_detached(y):
    y.detach().add_(1)
    return y


def same_type(y):
    y.float().add_(1)
    return y


def with_convolution_first(y):
    F.avg_pool2d(y, 2)  # remembers the map, which would hide the loss
    y.view(1, 8, SIDE * SIDE).add_(1)
    return F.interpolate(F.avg_pool2d(y, 2), scale_factor=2)


def through_mixed(y):
    y.view(1, 16, SIDE * SIDE // 2).mul_(2)
    return y


def through_flat(y):
    F.relu(y.reshape(1, -1), inplace=True)
    return y


@pytest.mark.parametrize(
    "body, name",
    [
        pytest.param(through_view, "add_", id="view"),
        pytest.param(through_mixed, "mul_", id="view that mixes positions"),
        pytest.param(through_flat, "relu", id="flat view"),
        pytest.param(through_transposed, "mul_", id="transposed"),
        pytest.param(through_unsqueezed, "add_", id="unsqueezed"),
        pytest.param(through_activation, "relu", id="activation"),
        pytest.param(through_part, "mul_", id="part"),
        pytest.param(through_channel, "sub_", id="channels"),
        pytest.param(under_a_view, "add_", id="the map under a view"),
        pytest.param(through_detached, "add_", id="detached"),
        pytest.param(same_type, "add_", id="same type"),
        pytest.param(with_convolution_first, "add_", id="map remembered before"),
    ],
)
def test_a_map_used_after_a_write_to_its_view_is_refused(body, name):
    message = f"^middle calls {name} on one view of a map, and the model uses another view of the same map afterwards: use the"
    with pytest.raises(ModelError, match=message):
        edit(body)


def residual(y):
    z = y * 2
    z += y
    return z


def own_view(y):
    z = y.flatten(2).transpose(1, 2)
    z += 1
    return z.transpose(1, 2).view(1, 8, SIDE, SIDE)


def view_made_afterwards(y):
    y.add_(1)
    return y.flatten(2).view(y.shape) + y


def mixed_view_alone(y):
    return y.view(1, 16, SIDE * SIDE // 2).mul_(2).view(y.shape)


def parts_of_one_split(y):
    first, second = y.chunk(2, 1)
    first.mul_(2)
    second += first
    return torch.cat([first, second], 1)


def parts_of_parts(y):
    first, second = y.chunk(2, 1)
    one, two = first.flatten(2).split(2, 1)
    one.mul_(2)
    whole = torch.cat([one, two], 1).view(1, 4, SIDE, SIDE)
    return torch.cat([whole, second], 1)


def clone_of_a_map(y):
    z = y.clone()
    z.add_(1)
    return y * z


def scaled_by_one(y):
    z = y * 1
    z.add_(1)
    return y * z


def other_type(y):
    z = y.double()
    z.add_(1)
    return y * z.float()


def shape_of_a_lost_view(y):
    z = y.flatten(2)
    z.add_(1)
    return z.view(y.shape)


def up_sampled(y):
    z = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2)
    z.add_(1)
    return y + z


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(residual, id="residual"),
        pytest.param(own_view, id="view in its map's place"),
        pytest.param(view_made_afterwards, id="view made afterwards"),
        pytest.param(mixed_view_alone, id="view that mixes positions, alone"),
        pytest.param(parts_of_one_split, id="parts of one split"),
        pytest.param(parts_of_parts, id="parts of parts"),
        pytest.param(clone_of_a_map, id="clone"),
        pytest.param(scaled_by_one, id="times one"),
        pytest.param(other_type, id="another type"),
        pytest.param(shape_of_a_lost_view, id="shape alone"),
        pytest.param(up_sampled, id="up-sampled"),
    ],
)
def test_a_write_in_place_that_no_other_view_sees_is_the_dense_models(body):
    after, dense = edit(body)
    assert (after - dense).abs().max() < 1e-4
