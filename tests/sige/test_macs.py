"""Two counts of multiply-accumulates that know nothing of each other: the rules' and the dispatcher's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sige
from sige import macs

POLICIES = ["incremental", "sige", "sige_public", "pixel", "dense"]


@pytest.mark.parametrize("name", POLICIES)
def test_attention_is_what_ran(unet, small, images, name):
    original, edited, mask = images
    session = sige.Session(unet, small(name))
    with session.record():
        unet(original, 500)
    with macs.MacCounter() as counter, session.edit(mask) as effect:
        unet(edited, 500)
    # The 1x1 convolutions run as linear layers, so those two kinds agree in their sum only.
    assert effect.sparse_macs_by_kind["attention"] == counter.count.by_kind["attention"] > 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_operator_of_an_edit_is_known(unet, small, images, name):
    original, edited, mask = images
    session = sige.Session(unet, small(name))
    with macs.MacCounter() as counter:
        with session.record():
            unet(original, 500)
        with session.edit(mask):
            unet(edited, 500)
        session.undo()
    assert counter.count.unlisted == []


@pytest.mark.parametrize("name", POLICIES)
def test_totals_agree(unet, small, images, name):
    original, edited, mask = images
    session = sige.Session(unet, small(name))
    with session.record():
        unet(original, 500)
    with macs.MacCounter() as counter, session.edit(mask) as effect:
        unet(edited, 500)
    assert (effect.macs, effect.dense_macs) == (counter.count.total, macs.count(unet, original, 500).total)


def test_batch_of_different_masks_agrees(unet, small, images):
    original, edited, mask = images
    session = sige.Session(unet, small("incremental"))
    with session.record():
        unet(original.repeat(2, 1, 1, 1), 500)
    with macs.MacCounter() as counter, session.edit(torch.stack([mask, torch.zeros_like(mask)])) as effect:
        unet(torch.cat([edited, original]), 500)
    assert (effect.macs, counter.count.unlisted) == (counter.count.total, [])


@pytest.fixture(scope="module")
def church():
    """The church-256 U-Net of conf/model, without weights."""
    from diffusers import UNet2DModel
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(sige.paths.conf_dir() / "model" / "ddpm_church256.yaml"))["config"]
    with torch.device("meta"):
        return UNet2DModel(**config)


def test_church_parameters(church):
    assert sum(weight.numel() for weight in church.parameters()) == pytest.approx(113.67e6, rel=1e-4)


def test_church_dense_count(church):
    count = macs.count(church, torch.empty(1, 3, 256, 256, device="meta"), torch.tensor([500], device="meta"))
    assert (count.total == pytest.approx(248.5e9, rel=1e-3), count.unlisted) == (True, [])


@pytest.mark.parametrize("mask", [None, torch.ones(6, 7, dtype=torch.bool)], ids=["plain", "masked"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_products_are_counted(device, mask):
    query, key, value = (torch.randn(2, 3, n, width).to(device) for n, width in ((6, 4), (7, 4), (7, 5)))
    mask = None if mask is None else mask.to(device)
    with macs.MacCounter() as counter:
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert (counter.count.by_kind["attention"], counter.count.unlisted) == (2 * 3 * 6 * 7 * (4 + 5), [])


@pytest.mark.parametrize(
    "make, shape, kind, expected",
    [
        pytest.param(
            lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 7), "conv", 2 * 35 * 6 * 2 * 9, id="conv2d"
        ),
        pytest.param(lambda: nn.Conv1d(4, 6, 3), (2, 4, 7), "conv", 2 * 5 * 6 * 4 * 3, id="conv1d"),
        pytest.param(lambda: nn.ConvTranspose2d(4, 6, 2, 2), (1, 4, 3, 3), "conv", 9 * 4 * 6 * 4, id="transposed"),
        pytest.param(lambda: nn.Linear(4, 6), (5, 4), "linear", 5 * 24, id="linear"),
        pytest.param(lambda: nn.Linear(4, 6, bias=False), (2, 5, 4), "linear", 2 * 5 * 24, id="linear of tokens"),
        pytest.param(lambda: nn.MultiheadAttention(4, 2).train(), None, "attention", 2 * 25 * (2 + 2), id="module"),
    ],
)
def test_modules(make, shape, kind, expected):
    module = make()
    args = [torch.randn(5, 1, 4)] * 3 if shape is None else [torch.randn(shape)]
    assert macs.count(module, *args).by_kind[kind] == expected


def test_norms_and_pointwise_work_are_free():
    count = macs.count(
        nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2)), torch.randn(1, 4, 4, 4)
    )
    assert (count.total, count.unlisted) == (0, [])


def test_counting_needs_no_gradients():
    seen = []
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda m, i, o: seen.append(o.requires_grad))
    macs.count(module, torch.randn(1, 2))
    assert seen == [False]


def test_unknown_operator_is_listed():
    library = torch.library.Library("sige_test_macs", "DEF")
    library.define("secret_product(Tensor a, Tensor b) -> Tensor")
    library.impl("secret_product", lambda a, b: a @ b, "CPU")
    with macs.MacCounter() as counter:
        torch.ops.sige_test_macs.secret_product(torch.ones(2, 3), torch.ones(3, 4))
        torch.ops.sige_test_macs.secret_product(torch.ones(2, 3), torch.ones(3, 4))
    assert "secret_product" in counter.count.unlisted and counter.count.unlisted.count("secret_product") == 1


def test_tiles_cost_more_than_pixels(unet, small, images):
    original, edited, mask = images
    cost = {}
    for name in ("pixel", "sige_public", "sige"):
        session = sige.Session(unet, small(name))
        with session.record():
            unet(original, 500)
        with session.edit(mask) as effect:
            unet(edited, 500)
        cost[name] = effect.macs
    assert cost["pixel"] < cost["sige"] >= cost["sige_public"]


def test_a_linear_layer_on_a_transposed_sequence_is_linear():
    """(B, C, N) seen as (B, N, C): PyTorch multiplies by an expanded weight, batch by batch."""
    layer = torch.nn.Linear(6, 5, device="meta")
    found = macs.count(lambda x: layer(x.transpose(1, 2)), torch.empty(2, 6, 7, device="meta"))
    assert found.by_kind == {"conv": 0, "linear": 2 * 7 * 6 * 5, "attention": 0}
