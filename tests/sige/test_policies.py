"""Which policy a session has that is given none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige


class Functional(nn.Module):
    """A convolution without a layer: only its weight says that positions overlap."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight, padding=1)


def tokens():
    return nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 1), nn.Linear(8, 8))


MODELS = {
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), "incremental"),
    "patches that overlap": (lambda: nn.Conv2d(3, 8, 3, stride=2), "incremental"),
    "overlap in one direction": (lambda: nn.Conv2d(3, 8, (1, 3)), "incremental"),
    "a transposed convolution": (lambda: nn.ConvTranspose2d(3, 8, 2, stride=2), "incremental"),
    "a weight without a layer": (Functional, "incremental"),
    "tokens": (tokens, "tokens"),
    "single positions": (lambda: nn.Conv2d(3, 8, 1), "tokens"),
    "patches beside convolutions": (lambda: nn.Sequential(tokens(), nn.Conv2d(8, 8, 3)), "incremental"),
}


@pytest.mark.parametrize("make, name", MODELS.values(), ids=MODELS)
def test_the_usual_policy_of(make, name):
    assert sige.Session(make()).policy is sige.policy(name)


@pytest.mark.parametrize("make, name", MODELS.values(), ids=MODELS)
def test_another_policy_that_is_asked_for(make, name):
    assert sige.Session(make(), "sige").policy is sige.policy("sige")
