"""Sessions without data: on the meta device an edit costs, remembers and recomputes what it does on values."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige

POLICIES = ["sige", "sige_public", "pixel", "fisedit", "fisedit_radical", "incremental"]
SIDE = 64


class Mixed(nn.Module):
    """What U-Nets of the session's fixture lack: cross-attention on a text, label maps, pooling, transposed convolution, norms."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.text, self.gamma = nn.Linear(6, 16), nn.Conv2d(3, 16, 3, padding=1)
        self.batch, self.instance = nn.BatchNorm2d(16), nn.InstanceNorm2d(16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.Conv2d(8, 3, 3, padding=1)

    def heads(self, x):
        return x.view(len(x), -1, 2, 8).transpose(1, 2)

    def attend(self, x, seen):
        tokens = x.flatten(2).transpose(1, 2)
        seen = tokens if seen is None else seen
        found = F.scaled_dot_product_attention(*(self.heads(x) for x in (self.q(tokens), self.k(seen), self.v(seen))))
        return found.transpose(1, 2).reshape(tokens.shape).transpose(1, 2).view(x.shape)

    def forward(self, x, text):
        y = self.instance(self.down(self.first(x)))
        y = y + self.attend(y, None) + self.attend(y, self.text(text))
        y = self.batch(y * (1 + self.gamma(F.interpolate(x, size=y.shape[2:]))))
        pooled = F.interpolate(F.max_pool2d(y, 2) + F.avg_pool2d(y, 2), scale_factor=2, mode="bilinear")
        return self.last(self.up(F.interpolate(F.avg_pool2d(y, 2), scale_factor=2) + pooled))


def unet_call(model, x):
    return model(x, torch.tensor([500], device=x.device)).sample


def mixed_call(model, x):
    return model(x, torch.zeros(len(x), 5, 6, device=x.device))


@pytest.fixture(scope="module", params=["unet", "mixed"])
def network(request, unet):
    """(model, the same on the meta device, how it is called)."""
    torch.manual_seed(0)
    model, call = (unet, unet_call) if request.param == "unet" else (Mixed().eval(), mixed_call)
    return model, copy.deepcopy(model).to("meta"), call


def mask(batch=1):
    area = torch.zeros(batch, SIDE, SIDE, dtype=torch.bool)
    area[0, 20:40, 24:50] = area[-1, 3:9, 50:61] = True
    return area


def run(model, call, policy, device, area):
    """Effect without its map, what was recomputed and state bytes of an edit of noise on a device."""
    x = torch.randn(len(area), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    session = sige.Session(model, policy)
    with session.record():
        call(model, x)
    with session.edit(area) as effect:
        out = call(model, x)
    assert out.device.type == device
    return dataclasses.asdict(effect), effect.active, session.state_bytes()


@pytest.fixture(scope="module")
def both(network):
    """``both(policy, batch)``: what :func:`run` gives on values and without, made once."""
    made, (model, ghost, call) = {}, network

    def make(policy, batch=1):
        if (policy, batch) not in made:
            pair = [(model, "cpu"), (ghost, "meta")]
            made[policy, batch] = [run(net, call, policy, device, mask(batch)) for net, device in pair]
        return made[policy, batch]

    return make


@pytest.mark.parametrize("name", POLICIES)
def test_an_edit_costs_on_meta_what_it_does_on_values(both, small, name):
    (values, _, _), (without, _, _) = both(small(name))
    assert (without, values["macs"] > 0, values["fallbacks"]) == (values, True, [])


@pytest.mark.parametrize("name", POLICIES)
def test_a_recording_keeps_on_meta_what_it_does_on_values(both, small, name):
    (_, _, values), (_, _, without) = both(small(name))
    assert without == values


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_recomputed_is_known_on_meta(both, small, name):
    (_, values, _), (_, without, _) = both(small(name))
    assert (without.device.type, torch.equal(without, values)) == ("cpu", True)


@pytest.mark.parametrize("name", ["sige", "incremental"])
def test_masks_of_a_batch_are_counted_on_meta(both, small, name):
    (values, _, state), (without, _, kept) = both(small(name), 2)
    assert (without, kept) == (values, state)


def test_half_the_bytes_are_kept_on_meta_in_half_the_precision(both, small):
    (_, _, values), (_, _, without) = both(small("incremental", state_dtype=torch.bfloat16))
    assert without == values


def test_undo_and_commit_work_on_meta(network, small):
    _, ghost, call = network
    x = torch.empty(1, 3, SIDE, SIDE, device="meta")
    session, macs = sige.Session(ghost, small("incremental")), []
    with session.record():
        call(ghost, x)
    for verb in (session.undo, session.commit):
        with session.edit(mask()) as effect:
            call(ghost, x)
        verb()
        macs.append(effect.macs)
    with session.edit(mask()) as effect:
        call(ghost, x)
    assert {*macs} == {effect.macs}
