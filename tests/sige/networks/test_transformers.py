"""diffusers' own image transformers in a session, unmodified: small configurations of their classes."""

import contextlib
import dataclasses

import pytest
import torch
from image_transformers import NETWORKS, SIDE, flux, pixart, sd3, sd35

import sige

_modules = {}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network and its module, made once, with no weight zero."""
    name = request.param
    if name not in _modules:
        torch.manual_seed(0)
        module = NETWORKS[name].make().eval().requires_grad_(False)
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        _modules[name] = module
    return NETWORKS[name], _modules[name]


def tokens_alone(**changes):
    return dataclasses.replace(sige.policy("incremental"), block=1, dilation=0, dense_above=None, **changes)


def masks(network, batch):
    """About 5 % of the map, at another place in each sample: (B, H, W)."""
    side = network.side
    mask = torch.zeros(batch, side, side, dtype=torch.bool)
    for sample in range(batch):
        top, left = side // 8 + sample * side // 4, side // 4 + sample * side // 8
        mask[sample, top : top + side // 4, left : left + side // 5] = True
    return mask


class Run:
    """One recorded forward and one edit of it, beside the dense model."""

    def __init__(self, network, module, mask, policy=None, changed=True):
        generator = torch.Generator().manual_seed(1)
        shape = (len(mask), *network.shape)
        self.original = torch.randn(shape, generator=generator)
        other = torch.randn(shape, generator=generator)
        self.edited = torch.where(network.spread(mask), other, self.original) if changed else self.original
        self.session = sige.Session(module, policy or tokens_alone(), token_grid=network.grid)
        with self.session.record():
            self.before = network.step(module, self.original)
        with self.session.edit(mask) as self.effect:
            self.after = network.step(module, self.edited)
        with torch.no_grad():
            self.dense = network.step(module, self.edited)
        self.inside = network.spread(mask).expand_as(self.after)
        self.active = network.spread(self.effect.active).expand_as(self.after)

    def error(self, where=...):
        """Relative L2 distance from the dense model."""
        return ((self.after - self.dense)[where].norm() / self.dense[where].norm()).item()


@pytest.mark.parametrize("batch", [1, 2])
def test_full_mask_equals_the_dense_model(network, batch):
    kind, module = network
    run = Run(kind, module, torch.ones(batch, kind.side, kind.side, dtype=torch.bool))
    assert (run.error() < 1e-4, run.effect.fallbacks, run.effect.macs <= run.effect.dense_macs) == (True, [], True)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_of_five_percent_falls_back_nowhere(network, batch):
    kind, module = network
    assert Run(kind, module, masks(kind, batch)).effect.fallbacks == []


@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_of_five_percent_is_right_inside(network, batch):
    kind, module = network
    run = Run(kind, module, masks(kind, batch))
    assert run.error(run.inside) < 0.01


ONE_LAYER = [
    pytest.param("pixart", lambda: pixart(1), id="pixart"),
    pytest.param("sd3", lambda: sd3(1), id="sd3"),
    pytest.param("sd3.5", lambda: sd35(1), id="sd3.5"),
    pytest.param("flux", lambda: flux(1, 0), id="flux, double"),
    pytest.param("flux", lambda: flux(0, 1), id="flux, single"),
]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name, make", ONE_LAYER)
def test_one_layer_is_exact_where_it_is_active(name, make, batch):
    """What a first layer remembers of the other tokens has not changed, so its attention misses nothing."""
    torch.manual_seed(0)
    kind, module = NETWORKS[name], make().eval()
    run = Run(kind, module, masks(kind, batch))
    assert run.error(run.active) < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_of_five_percent_costs_a_fraction(network, batch):
    kind, module = network
    effect = Run(kind, module, masks(kind, batch)).effect
    assert effect.macs < 0.25 * effect.dense_macs


@pytest.mark.parametrize("batch", [1, 2])
def test_outside_is_the_recording_bit_for_bit(network, batch):
    kind, module = network
    run = Run(kind, module, masks(kind, batch))
    assert (torch.equal(run.after[~run.active], run.before[~run.active]), bool((~run.active).any())) == (True, True)


def test_samples_have_active_tokens_of_their_own(network):
    kind, module = network
    run = Run(kind, module, masks(kind, 2))
    alone = Run(kind, module, masks(kind, 2)[1:])
    assert torch.equal(run.effect.active[1], alone.effect.active[0])


def test_unchanged_input_returns_the_recording(network):
    kind, module = network
    run = Run(kind, module, masks(kind, 2), changed=False)
    assert (run.after - run.before).abs().max() < 1e-5


def test_empty_mask_returns_the_recording_bit_for_bit(network):
    kind, module = network
    with pytest.warns(UserWarning, match="empty"):
        run = Run(kind, module, masks(kind, 1) & False, changed=False)
    assert (torch.equal(run.after, run.before), run.effect.macs) == (True, 0)


def test_undo_gives_the_same_edit_again(network):
    kind, module = network
    run = Run(kind, module, masks(kind, 1))
    run.session.undo()
    with run.session.edit(masks(kind, 1)):
        again = kind.step(module, run.edited)
    assert torch.equal(again, run.after)


def test_committed_edit_is_what_the_next_one_builds_on(network):
    kind, module = network
    run = Run(kind, module, masks(kind, 1))
    run.session.commit()
    with run.session.edit(masks(kind, 1)):
        back = kind.step(module, run.original)
    assert ((back - run.before).norm() / run.before.norm()).item() < 0.01


@pytest.mark.parametrize("policy", ["sige", "pixel", "dense"])
def test_other_policies_equal_the_dense_model_under_a_full_mask(network, policy):
    kind, module = network
    chosen = sige.policy(policy)
    chosen = chosen if policy == "dense" else dataclasses.replace(chosen, min_resolution=16)
    run = Run(kind, module, torch.ones(1, kind.side, kind.side, dtype=torch.bool), chosen)
    assert (run.error() < 1e-4, run.effect.fallbacks) == (True, [])


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_autocast_errs_no_more_than_the_dense_model_does(network):
    kind, module = network
    everything = torch.ones(1, kind.side, kind.side, dtype=torch.bool)
    exact = Run(kind, module, everything).dense
    with torch.autocast("cpu", torch.bfloat16):
        run = Run(kind, module, everything)
    ours, dense = ((found.float() - exact).norm() for found in (run.after, run.dense))
    assert (run.effect.fallbacks, bool(0 < ours <= 1.2 * dense)) == ([], True)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_remembered_text_is_near_the_dense_model(name):
    kind = NETWORKS[name]
    torch.manual_seed(0)
    module = kind.make().eval()
    always, never = (Run(kind, module, masks(kind, 1), tokens_alone(text_refresh=n)) for n in (1, None))
    assert (never.error(never.inside) < 0.01, never.effect.fallbacks, never.effect.macs < always.effect.macs) == (
        True, [], True,
    )  # fmt: skip


def with_other_text(module):
    """A hook that calls the module with another text."""

    def other_text(module, args, kwargs):
        return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"] + 1}

    return contextlib.closing(_Hook(module.register_forward_pre_hook(other_text, with_kwargs=True)))


class _Hook:
    def __init__(self, handle):
        self.close = handle.remove


def test_text_that_changed_must_be_declared(network):
    kind, module = network
    run = Run(kind, module, masks(kind, 1))
    with (
        with_other_text(module),
        pytest.raises(sige.SigeError, match="'encoder_hidden_states' differs from the recording"),
    ):
        with run.session.edit(masks(kind, 1)):
            kind.step(module, run.edited)


@pytest.mark.parametrize("refresh", [1, None])
@pytest.mark.parametrize("name, make", ONE_LAYER)
def test_declared_text_is_computed_anew_and_exact_in_one_layer(name, make, refresh):
    torch.manual_seed(0)
    kind, module = NETWORKS[name], make().eval()
    run = Run(kind, module, masks(kind, 1), tokens_alone(text_refresh=refresh))
    with with_other_text(module), torch.no_grad():
        with run.session.edit(masks(kind, 1), changed=("encoder_hidden_states",)):
            run.after = kind.step(module, run.edited)
        other, run.dense = run.dense, kind.step(module, run.edited)
    assert (run.error(run.active) < 1e-5, torch.allclose(other, run.dense)) == (True, False)


def test_token_that_changed_outside_the_mask_is_named():
    kind = NETWORKS["flux"]
    module = kind.make().eval()
    run = Run(kind, module, masks(kind, 1))
    moved = run.edited.clone()
    moved[0, 31 * SIDE + 30] += 1
    with pytest.raises(
        sige.SigeError, match="'hidden_states' differs from the recording at 1 positions .* row 31, column 30"
    ):
        with run.session.edit(masks(kind, 1)):
            kind.step(module, moved)


def test_token_grid_that_does_not_fit_is_named():
    kind = NETWORKS["flux"]
    module = kind.make().eval()
    session = sige.Session(module, token_grid=(8, 8))
    with pytest.raises(sige.SigeError, match=r"token_grid=\(8, 8\) asks for an input \(B, 64, C\)"):
        with session.record():
            kind.step(module, torch.randn(1, *kind.shape))
