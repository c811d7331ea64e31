"""Functions element by element, and along features: on rows what they are on maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A 3x3 convolution, ``body(net, x)``, and a 3x3 convolution again."""

    def __init__(self, body):
        super().__init__()
        self.first, self.side, self.gate, self.last = (nn.Conv2d(8, width, 3, padding=1) for width in (8, 8, 1, 8))
        self.weight, self.slope, self.body = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.PReLU(8), body

    def forward(self, x):
        return self.last(self.body(self, self.first(x)))


def net(body):
    return lambda: Net(body)


ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
ELEMENTWISE = {
    "sine": lambda n, x: x.sin() + torch.cos(x),
    "logarithms": lambda n, x: (x.abs() + 1).log() + torch.log1p(x.square()),
    "steps": lambda n, x: (
        (1e-6 * x).ceil() + torch.sign(x) + (0.3 + x.tanh() / 9).round() + x.reciprocal().clamp(-2, 2)
    ),
    "activations": lambda n, x: F.selu(x) + F.celu(x) + F.softsign(x) + F.tanhshrink(x) + F.threshold(x, 0.1, 0.3),
    "activations in place": lambda n, x: (
        nn.SELU(True)(n.side(x)) + nn.CELU(1.2, True)(2 * x) + nn.Threshold(0.1, 0.3, True)(x + 1)
    ),
    "equal to nothing": lambda n, x: x if x == None else -x if x != None else 2 * x,  # noqa: E711
    "shrunk": lambda n, x: F.hardshrink(x) + F.softshrink(x),
    "a slope for each channel": lambda n, x: n.slope(x),
    "one slope": lambda n, x: F.prelu(x, n.weight[:1, 0, 0]),
    "clamped": lambda n, x: x.clamp_min(0.0) + torch.clamp_max(x, 0.5) + x.clip(-0.1, 0.2),
    "clamped by maps": lambda n, x: torch.clamp(x, -n.side(x).abs(), n.side(x).abs()),
    "choice": lambda n, x: torch.where(x > 0, x, 0.1 * n.side(x)),
    "choice by a gate": lambda n, x: torch.where(n.gate(x) > 0, x, -n.weight),
    "filled": lambda n, x: x.masked_fill((x > 0.5) | (x < -0.5), 0.25),
    "both and not": lambda n, x: x * ((x >= 0) & ~(x > 1)) + torch.logical_or(x < 0, x != x),
    "mixture": lambda n, x: torch.lerp(x, n.side(x), 0.3) + torch.lerp(x, n.weight * x, n.gate(x).sigmoid()),
    "added products": lambda n, x: torch.addcmul(x, n.side(x), n.weight, value=0.5) + torch.addcdiv(x, x, n.weight),
    "larger and smaller": lambda n, x: torch.maximum(x, n.side(x)) - x.minimum(n.weight),
    "powers": lambda n, x: x.abs() ** n.weight + torch.pow(x.abs() + 0.1, n.gate(x).abs()) + 2.0**x,
    "remainders": lambda n, x: x % 0.3 + torch.fmod(x, n.weight) + x // 0.4,
    "angles": lambda n, x: torch.atan2(x, n.side(x)) + torch.hypot(x, n.weight),
    "up-sampled": lambda n, x: F.avg_pool2d(torch.where(F.interpolate(n.gate(x), scale_factor=2) > 0, 1.0, 0.5), 2) * x,
}
ALONG_FEATURES = {
    "largest": lambda n, x: x - x.amax(1, keepdim=True) + x.max(dim=1, keepdim=True)[0] + x.min(1).values[:, None],
    "where it is largest": lambda n, x: x + x.argmax(1, keepdim=True) + x.max(1, keepdim=True).indices,
    "norms": lambda n, x: x / (torch.norm(x, dim=1)[:, None] + x.norm(1, 1, True) + torch.linalg.vector_norm(x, 1, dim=1)[:, None]),
    "spread": lambda n, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + x.std(dim=1, keepdim=True) + 0.1),
    "spread and mean": lambda n, x: torch.var_mean(x, (1,), keepdim=True)[0] * x,
    "softmax": lambda n, x: F.log_softmax(x, 1) + x.logsumexp(1, keepdim=True),
    "sums so far": lambda n, x: x.cumsum(1) + x.tanh().cumprod(dim=1),
    "turned round": lambda n, x: x.flip(1) + torch.roll(x, 2, 1) + x.flip((1,)),
    "turned round in heads": lambda n, x: x.view(len(x), 2, 4, 32, 32).flip(1, 2).flatten(1, 2),
    "chosen": lambda n, x: x.index_select(1, ORDER) + torch.index_select(x, 1, ORDER.flip(0)),
    "gated": lambda n, x: F.glu(torch.cat([x, n.side(x)], 1), 1) + F.glu(torch.cat([x, x], 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "any and all": lambda n, x: x * (x > 0).any(1, keepdim=True) * (x < 2).all(dim=1, keepdim=True),
    "products": lambda n, x: x + x.prod(1, keepdim=True),
    "sorted": lambda n, x: x.sort(1).values + x.argsort(dim=1),
    "tokens": lambda n, x: (t := x.flatten(2).transpose(1, 2)).sub(t.amax(-1, keepdim=True)).transpose(1, 2).view(x.shape),
    "einsum with a matrix": lambda n, x: torch.einsum("bchw, dc -> bdhw", x, n.side.weight[:, :, 0, 0]),
    "einsum with a vector": lambda n, x: torch.einsum("c,bchw->bhwc", n.weight[:, 0, 0], x).permute(0, 3, 1, 2),
    "einsum by heads": lambda n, x: torch.einsum(
        "bhcyx,hcd,d->bhdyx", x.unflatten(1, (2, 4)), n.side.weight[:, :4, 1, 1].view(2, 4, 4), n.weight[:4, 0, 0]
    ).flatten(1, 2),
}  # fmt: skip
DENSE = {
    "of a padded map": (lambda n, x: torch.cos(F.pad(x, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1], "cos"),
    "tensors by keyword": (lambda n, x: torch.where(x > 0, input=x, other=-x), "where"),
    "along positions": (lambda n, x: x - x.amax(2, keepdim=True), "amax"),
    "along everything": (lambda n, x: x - x.max(), "max"),
    "heads and positions turned round": (
        lambda n, x: x.view(len(x), 2, 4, -1).transpose(2, 3).flip(1, 2).transpose(2, 3).reshape(x.shape), "flip"),
    "written by a mask": (lambda n, x: (y := x.clone()).__setitem__(y > 0.5, 0.1) or y, "__setitem__"),
    "chosen by a mask": (lambda n, x: x + x[x > 0.5].mean(), "__getitem__"),
    "filled by a mask": (lambda n, x: x.clone().masked_fill_(x > 0.5, 0.1), "masked_fill_"),
    "positions turned round": (lambda n, x: x.flip(2).flip(2), "flip"),
    "einsum over positions": (lambda n, x: x + torch.einsum("bchw->bc", x)[..., None, None], "einsum"),
    "einsum of samples": (lambda n, x: torch.einsum("bchw,bc->bchw", x, n.weight[:, 0, 0].expand(len(x), 8)), "einsum"),
}  # fmt: skip
CASES = [pytest.param(net(body), id=name) for name, body in {**ELEMENTWISE, **ALONG_FEATURES}.items()]


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, geometry):
    done = trial(make, geometry, batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", CASES)
def test_active_sets_wider_than_the_reach_equal_the_dense_model(trial, make):
    done = trial(make, mask="wide", batch=2)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", CASES)
def test_small_mask_leaves_the_rest_alone(trial, make):
    assert trial(make, mask="small").same_outside()


@pytest.mark.parametrize("make, name", [pytest.param(net(body), name, id=key) for key, (body, name) in DENSE.items()])
def test_anything_else_runs_dense_and_is_named(trial, make, name):
    done = trial(make, batch=2)
    assert (done.error() < 1e-4, any(name in found for found in done.effect.fallbacks)) == (True, True)
