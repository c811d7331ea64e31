"""The SPADE generators: their published sizes, shapes, and that labels steer what they paint."""

import pytest
import torch
from torch import nn

from sige.macs import count
from sige.runs.models.networks.spade import SeparableConv, SpadeGenerator

PUBLISHED = [
    pytest.param("64", False, 281.3, 93.05, id="gaugan"),
    pytest.param("32_32_32_48_32_24_24_32", True, 31.2, 20.17, id="gan compression"),
    pytest.param("16_40_16_8_16_16_8_16", True, 9.64, 5.88, id="small gan compression"),
    pytest.param("12", False, 13.26, 3.44, id="gaugan of 12/64 width"),
]


def generator(widths, separable):
    numbers = [int(number) for number in widths.split("_")]
    return SpadeGenerator(tuple(numbers * (8 // len(numbers))), separable=separable).eval()


@pytest.fixture(params=[pytest.param(False, id="spade"), pytest.param(True, id="mobile")])
def tiny(request):
    """A generator of 8 channels a unit, or a mobile one whose blocks all differ in width, seeded."""
    torch.manual_seed(0)
    return generator("4_5_3_4_6_5_4_3" if request.param else "8", request.param)


@pytest.mark.parametrize("widths, separable, macs, parameters", PUBLISHED)
def test_multiply_accumulates_are_the_published_ones(widths, separable, macs, parameters):
    with torch.device("meta"):
        counted = count(generator(widths, separable), torch.empty(1, 36, 256, 512))
    assert (counted.total / 1e9, counted.unlisted) == (pytest.approx(macs, rel=5e-3), [])


@pytest.mark.parametrize("widths, separable, macs, parameters", PUBLISHED)
def test_parameters_are_the_published_ones(widths, separable, macs, parameters):
    with torch.device("meta"):
        module = generator(widths, separable)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


@torch.no_grad()
def test_a_picture_has_the_size_of_its_labels(tiny):
    assert tiny(torch.zeros(2, 36, 64, 128)).shape == (2, 3, 64, 128)


@torch.no_grad()
def test_pixels_are_in_range(tiny):
    assert tiny(50 * torch.randn(1, 36, 64, 128)).abs().max() <= 1


@torch.no_grad()
def test_blocks_double_the_resolution_from_a_sixty_fourth(tiny):
    sizes = []
    for block in (tiny.head_0, tiny.G_middle_0, tiny.G_middle_1, tiny.up_0, tiny.up_1, tiny.up_2, tiny.up_3):
        block.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[2:])))
    tiny(torch.zeros(1, 36, 64, 128))
    assert sizes == [(1 << step, 2 << step) for step in range(7)]


@torch.no_grad()
def test_scale_and_shift_are_one_and_zero_when_their_layers_are_zero(tiny):
    spade = tiny.up_2.norm_0
    for layer in spade.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    x = torch.randn(1, spade.param_free_norm.num_features, 8, 16)
    hidden = torch.randn(1, tiny.up_2.hidden, 8, 16)
    torch.testing.assert_close(spade(x, hidden), x / (1 + 1e-5) ** 0.5)


@torch.no_grad()
def test_a_plain_block_normalises_with_what_its_names_say():
    """A block written out with one convolution for each of what it merges."""
    torch.manual_seed(0)
    block = generator("4", False).up_3
    x, labels = torch.randn(1, 8, 16, 16), torch.randn(1, 36, 32, 32)
    seen = labels[:, :, ::2, ::2]  # nearest
    convolve = nn.functional.conv2d

    def normalise(value, number, norm):
        first, last = number * block.hidden, (number + 1) * block.hidden
        shared = block.mlp_shared[0]
        hidden = convolve(seen, shared.weight[first:last], shared.bias[first:last], padding=1).relu()
        made, width = norm.mlp_gamma_beta, value.shape[1]
        gamma = convolve(hidden, made.weight[:width], made.bias[:width], padding=1)
        beta = convolve(hidden, made.weight[width:], made.bias[width:], padding=1)
        return value / (1 + 1e-5) ** 0.5 * (1 + gamma) + beta

    leaky = lambda value: torch.where(value > 0, value, 0.2 * value)  # noqa: E731
    path = block.conv_0(leaky(normalise(x, 0, block.norm_0)))
    path = block.conv_1(leaky(normalise(path, 1, block.norm_1)))
    expected = path + block.conv_s(normalise(x, 2, block.norm_s))
    torch.testing.assert_close(block(x, labels), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_separable_convolution_normalises_each_channel_of_each_picture():
    torch.manual_seed(0)
    made = SeparableConv(6, 5)
    x = torch.randn(2, 6, 16, 16)
    torch.testing.assert_close(made(x), made(x * torch.tensor([1.0, 3.0])[:, None, None, None]), rtol=1e-3, atol=1e-3)


def test_nothing_runs_in_place(tiny):
    assert not [name for name, module in tiny.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize(
    "widths", [pytest.param((8,) * 7, id="seven"), pytest.param((8,) * 7 + (0,), id="zero"), pytest.param((8.0,) * 8, id="float")]
)  # fmt: skip
def test_other_than_eight_whole_widths_are_refused(widths):
    with pytest.raises(ValueError, match="a SPADE generator has 8 widths, whole numbers above 0, not "):
        SpadeGenerator(widths)


def test_a_side_that_is_no_multiple_of_64_is_refused(tiny):
    with pytest.raises(ValueError, match="sides that are multiples of 64, not 96x128"):
        tiny(torch.zeros(1, 36, 96, 128))
