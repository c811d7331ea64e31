"""Patches: into tokens by a strided convolution, out of them by axes that are merged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sige.active_set import ActiveSet
from sige.rules.patches import children

MASKS = torch.zeros(2, 32, 32, dtype=torch.bool)
MASKS[0, 9:14, 10:17] = MASKS[1, 20:30, 2:5] = True


class Patches(nn.Module):
    """Tokens of 2x2 or 4x4 pixels, a linear layer, ``body(tokens (B, H, W, C), p, q)`` back to a map, a convolution."""

    def __init__(self, body, patch=(2, 2)):
        super().__init__()
        self.embed = nn.Conv2d(8, 16, patch, stride=patch)
        self.out, self.last = nn.Linear(16, 8 * patch[0] * patch[1]), nn.Conv2d(8, 8, 3, padding=1)
        self.body, self.patch = body, patch

    def forward(self, x):
        tokens = self.embed(x)
        rows, columns = tokens.shape[2:]
        tokens = self.out(F.gelu(tokens.flatten(2).transpose(1, 2)))
        return self.last(self.body(tokens.reshape(shape=(-1, rows, columns, tokens.shape[-1])), *self.patch))


def channels_last_inside(t, p, q):
    """The patch's rows, its columns, then channels: PixArt and Stable Diffusion 3."""
    b, h, w, _ = t.shape
    return torch.einsum("nhwpqc->nchpwq", t.reshape(b, h, w, p, q, 8)).reshape(b, 8, h * p, w * q)


def channels_first_inside(t, p, q):
    b, h, w, _ = t.shape
    return t.view(b, h, w, 8, p, q).permute(0, 3, 1, 4, 2, 5).reshape(b, 8, h * p, w * q)


def map_with_channels_last(t, p, q):
    b, h, w, _ = t.shape
    t = torch.einsum("nhwpqc -> nhpwqc", [t.reshape(b, h, w, p, q, 8)])
    return t.reshape(b, h * p, w * q, 8).permute(0, 3, 1, 2)


def channels_in_two_groups(t, p, q):
    b, h, w, _ = t.shape
    return t.view(b, h, w, p, q, 2, 4).permute(0, 5, 6, 1, 3, 2, 4).reshape(b, 8, h * p, w * q)


def shuffled(t, p, q):
    return F.pixel_shuffle(t.permute(0, 3, 1, 2), p)


class Cut(nn.Module):
    """The input itself cut into patches (B, rows, columns, C * p * q), a linear layer, attention over them, and a map again."""

    def __init__(self, patch=(2, 2), spelled=False):
        super().__init__()
        width = 8 * patch[0] * patch[1]
        self.embed, self.qkv, self.out = nn.Linear(width, 16), nn.Linear(16, 48), nn.Linear(16, width)
        self.last, self.patch, self.spelled = nn.Conv2d(8, 8, 3, padding=1), patch, spelled

    def forward(self, x):
        (p, q), (b, c, height, width) = self.patch, x.shape
        if self.spelled:
            cut = torch.einsum("nchpwq->nhwcpq", x.reshape(b, c, height // p, p, -1, q)).reshape(b, -1, c * p * q)
        else:
            cut = x.view(b, c, height // p, p, width // q, q).permute(0, 2, 4, 1, 3, 5).flatten(-3).flatten(1, 2)
        tokens = self.embed(cut)
        found = [part[:, None] for part in self.qkv(tokens).chunk(3, dim=-1)]
        tokens = self.out(tokens + F.scaled_dot_product_attention(*found)[:, 0])
        return self.last(channels_first_inside(tokens.view(b, height // p, width // q, -1), p, q))


class Unshuffled(nn.Module):
    """A convolution, ``body`` that puts 2x2 positions into channels, and a convolution of those."""

    def __init__(self, body, first=True):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1) if first else nn.Identity()
        self.last, self.body = nn.Conv2d(32, 8, 3, padding=1), body

    def forward(self, x):
        return self.last(self.body(self.first(x)))


def by_hand(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def sides_one_by_one(t, p, q):
    """A patch's columns are put in place first, then its rows, as CogView4 does."""
    b, h, w, _ = t.shape
    return t.reshape(b, h, w, -1, p, q).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


CUT = [
    pytest.param(lambda: Unshuffled(lambda x: F.pixel_unshuffle(x, 2)), id="pixel unshuffle"),
    pytest.param(lambda: Unshuffled(by_hand), id="pixel unshuffle by hand"),
    pytest.param(lambda: Unshuffled(lambda x: F.pixel_unshuffle(x, 2), False), id="input unshuffled"),
    pytest.param(Cut, id="input cut"),
    pytest.param(lambda: Cut((4, 4)), id="input cut, 4x4"),
    pytest.param(lambda: Cut(spelled=True), id="input cut by einsum"),
]
CASES = [
    *CUT,
    pytest.param(lambda: Patches(channels_last_inside), id="rows, columns, channels"),
    pytest.param(lambda: Patches(channels_first_inside), id="channels, rows, columns"),
    pytest.param(lambda: Patches(map_with_channels_last), id="channels-last map"),
    pytest.param(lambda: Patches(sides_one_by_one), id="columns, then rows"),
    pytest.param(lambda: Patches(channels_in_two_groups), id="groups of channels"),
    pytest.param(lambda: Patches(channels_last_inside, (4, 4)), id="patches of 4x4"),
    pytest.param(lambda: Patches(channels_last_inside, (1, 1)), id="patches of one"),
    pytest.param(lambda: Patches(shuffled), id="pixel shuffle"),
]
OBLONG = pytest.param(lambda: Patches(channels_last_inside, (4, 2)), id="oblong")


@pytest.mark.parametrize("geometry", ["level", "window"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", CASES)
def test_full_mask_equals_the_dense_model(trial, make, batch, geometry):
    done = trial(make, geometry, batch=batch)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", [*CASES[len(CUT) :], OBLONG])
def test_samples_with_masks_of_their_own_equal_the_dense_model(trial, make):
    done = trial(make, mask=MASKS, batch=2, dilation=(9, 5, 3))
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("make", [*CASES, OBLONG])
def test_small_mask_leaves_the_rest_alone(trial, make):
    assert trial(make, mask="small").same_outside()


@pytest.mark.parametrize("make", [*CASES, OBLONG])
def test_unchanged_input_returns_the_recording(trial, make):
    done = trial(make, mask="same")
    assert (done.after - done.before).abs().max() < 1e-5


@pytest.mark.parametrize("equation", ["nhwc->nhwc", "nhwc->nwhc", "n h w c -> c h w n"])
def test_permutations_by_einsum(trial, equation):
    back = "->".join(equation.replace(" ", "").split("->")[::-1])

    def body(t, p, q):
        return torch.einsum(
            back, torch.einsum(equation, F.pixel_shuffle(t.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        ).permute(0, 3, 1, 2)

    done = trial(lambda: Patches(body))
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


@pytest.mark.parametrize("equation", ["nchw->nch", "nchw,nchw->nchw"])
def test_other_equations_run_dense_and_are_named(trial, equation):
    def body(t, p, q):
        x = F.pixel_shuffle(t.permute(0, 3, 1, 2), 2)
        found = torch.einsum(equation, *[x] * equation.count("nchw,"), x)
        return x + (found if found.dim() == 4 else found[..., None])

    done = trial(lambda: Patches(body), batch=2)
    assert (done.error() < 1e-4, any("einsum" in name for name in done.effect.fallbacks)) == (True, True)


@pytest.mark.parametrize("make", CUT)
def test_patches_of_the_input_cost_what_the_edit_covers(trial, make):
    effect = trial(make, mask="small").effect
    assert 0 < effect.macs < effect.dense_macs / 2


def test_patches_of_the_input_below_the_minimum_run_dense(trial):
    done = trial(lambda: Cut((4, 4)), min_resolution=9)
    assert (done.error() < 1e-4, done.effect.fallbacks) == (True, [])


def test_patch_by_patch_costs_the_patches_alone(trial):
    """One convolution of 16x8x2x2 and one linear layer of 32x16 a token, the last convolution of 8x8x3x3 a pixel of its level."""
    effect = trial(lambda: Patches(channels_last_inside), mask="small").effect
    pixels = effect.active.sum().item()
    tokens = (effect.macs - pixels * 8 * 8 * 9) / (16 * 8 * 4 + 32 * 16)
    assert (tokens == int(tokens), pixels / 4 <= tokens <= pixels) == (True, True)


SMALL = torch.tensor([[[0, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)


@pytest.fixture
def tokens():
    return ActiveSet.from_tiles(SMALL, (1, 1), 2, 3)


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 2)])
def test_children_cover_their_parents(tokens, sides):
    finer = children(tokens, *sides).mask()
    assert torch.equal(finer, SMALL.repeat_interleave(sides[0], 1).repeat_interleave(sides[1], 2))


def test_children_come_parent_after_parent(tokens):
    assert children(tokens, 2, 2).index[:8].tolist() == [2, 3, 8, 9, 14, 15, 20, 21]


def test_children_of_each_sample(tokens):
    assert children(tokens, 2, 2).segments == [(0, 8), (8, 12)]


def test_children_are_whole_tiles(tokens):
    assert (children(tokens, 2, 2).tile, children(tokens, 2, 2).tile_index.tolist()) == ((2, 2), [1, 4, 6])


def test_oblong_children_are_oblong_tiles(tokens):
    assert (children(tokens, 3, 2).tile, children(tokens, 3, 2).tile_index.tolist()) == ((3, 2), [1, 4, 6])


def test_children_of_everything_are_everything():
    finer = children(ActiveSet.everything(1, 2, 3), 2, 2)
    assert (finer.full, finer.shape) == (True, (1, 4, 6))


def test_children_are_made_once(tokens):
    assert children(tokens, 2, 2) is children(tokens, 2, 2)


def test_children_without_data(tokens):
    assert torch.equal(children(tokens.on("meta"), 2, 2).mask(), children(tokens, 2, 2).mask())
