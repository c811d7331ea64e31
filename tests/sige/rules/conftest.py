"""Small modules behind a session, under a full mask, a small one and none of consequence."""

import dataclasses

import pytest
import torch

import sige

SIDE = 32
_LEVEL = sige.Policy(name="level", geometry="level", block=4, dilation=1, min_resolution=4)
_WINDOW = sige.Policy(
    name="window", geometry="window", pyramid="bilinear", block=4, dilation=1, min_resolution=4, overhang=True
)
_TILE = sige.Policy(name="tile", geometry="tile", block=4, dilation=1, min_resolution=4)
POLICIES = {"level": _LEVEL, "window": _WINDOW, "tile": _TILE}


class Trial:
    """One edit of a module: ``before``, ``after`` and ``dense`` outputs, and the effect."""

    def __init__(self, module, policy, mask, edited=None, batch=1, geometry_seed=0):
        generator = torch.Generator().manual_seed(geometry_seed)
        self.original = torch.randn(batch, 8, SIDE, SIDE, generator=generator)
        other = torch.randn(batch, 8, SIDE, SIDE, generator=generator)
        spread = mask if mask.dim() == 2 else mask[:, None]
        self.edited = torch.where(spread, other, self.original) if edited is None else self.original
        self.session = sige.Session(module, policy)
        with self.session.record():
            self.before = module(self.original)
        with self.session.edit(mask) as self.effect:
            self.after = module(self.edited)
        with torch.no_grad():
            self.dense = module(self.edited)

    def error(self):
        """Relative L2 distance from the dense model."""
        return ((self.after - self.dense).norm() / self.dense.norm()).item()

    def same_outside(self):
        """Whether everything outside ``effect.active`` is the recording bit for bit, and something was outside."""
        outside = ~self.effect.active[:, None].expand_as(self.before)
        return bool(outside.any()) and torch.equal(self.after[outside], self.before[outside])


def build(make):
    torch.manual_seed(0)
    return make().eval()


def small_mask():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[9:14, 10:17] = True
    return mask


@pytest.fixture
def policy():
    """``policy(geometry, **changes)``: tiles of 4, every level down to 4x4 sparse, statistics exact."""
    return lambda geometry="level", **changes: dataclasses.replace(POLICIES[geometry], **changes)


@pytest.fixture
def trial(policy):
    """``trial(make, geometry, mask, ...)``: record and edit the module that ``make`` builds.

    mask: ``full``, ``small`` (5x7 of 32x32), ``wide`` (small, active sets grown past every receptive field), ``same``
    (small, nothing changed) or a tensor.
    """

    def run(make, geometry="level", mask="full", batch=1, **changes):
        if mask == "wide":
            changes["dilation"] = (7, 5)
        chosen = policy(geometry, **changes)
        area = torch.ones(SIDE, SIDE, dtype=torch.bool) if isinstance(mask, str) and mask == "full" else small_mask()
        area = mask if isinstance(mask, torch.Tensor) else area
        unchanged = True if isinstance(mask, str) and mask == "same" else None
        return Trial(build(make), chosen, area, unchanged, batch)

    return run


@pytest.fixture
def edits_in_a_row(policy):
    """``run(make, **settings)``: edits of three steps that are taken back (the first traced, the others replayed), one that stays, and
    one of other positions after it. Gives what the last one makes, and its error at the active positions against float64."""

    def run(make, **settings):
        model, (x, y, z) = build(make), torch.randn(3, 1, 8, SIDE, SIDE)
        masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
        masks[0, 8:16, 8:20] = masks[1, 12:24, 4:12] = True
        session = sige.Session(model, policy(dilation=0), **settings)

        def steps(image):
            return [model(image + step) for step in range(3)]

        with session.record():
            steps(x)
        for _ in range(3):
            with session.edit(masks[0]):
                steps(torch.where(masks[0], z, x))
            session.undo()
        with session.edit(masks[0]):
            steps(torch.where(masks[0], y, x))
        session.commit()
        edited = torch.where(masks[1], z, torch.where(masks[0], y, x))
        with session.edit(masks[1]) as effect:
            found = steps(edited)
        with torch.no_grad():
            exact = model.double()(edited.double())
        active = effect.active[:, None].expand_as(exact)
        return found, ((found[0] - exact)[active].norm() / exact[active].norm()).item()

    return run
