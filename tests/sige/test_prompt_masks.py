"""Masks of changed prompts: against the published maps and masks to the bit, and against independent arithmetic on made-up maps."""

import csv
from fractions import Fraction

import numpy as np
import pytest
import torch

from sige import prompt_masks
from sige.datasets import samples
from sige.errors import MaskError


def published():
    """(maps, masks, thresholds) of the ids whose difference map is on this machine; empty where the folder is not there."""
    places = [place for place in samples.search_path(name="fisedit-masks") if (place / "diff_sample.npz").is_file()]
    if not places:
        return [], [], []
    with np.load(places[0] / "diff_sample.npz") as arrays:
        maps, index = arrays["diff"], arrays["index"]
    with np.load(places[0] / "masks_3000.npz") as arrays:
        row = {int(number): place for place, number in enumerate(arrays["index"])}
        packed = arrays["masks_packed"][[row[int(number)] for number in index]]
    masks = np.unpackbits(packed, axis=1).reshape(-1, 96, 96).astype(bool)
    with open(places[0] / "mask_stats.csv", newline="") as file:
        stats = {int(line["id"]): line["otsu_threshold"] for line in csv.DictReader(file)}
    return maps, masks, [int(float(stats[int(number)])) for number in index]


MAPS, MASKS, THRESHOLDS = published()


def test_every_published_map_gives_its_published_mask():
    made = [prompt_masks.mask_of_map(torch.from_numpy(single)).numpy() for single in MAPS]
    assert [
        int(place) for place, (ours, theirs) in enumerate(zip(made, MASKS, strict=True)) if (ours != theirs).any()
    ] == []


def test_published_maps_in_one_batch_keep_their_own_thresholds():
    batch = np.asarray(MAPS[:5]).reshape(-1, 96, 96)
    assert len(batch) == 0 or np.array_equal(prompt_masks.mask_of_map(torch.from_numpy(batch)).numpy(), MASKS[:5])


def test_every_published_threshold_is_found():
    assert [prompt_masks.otsu_threshold(torch.from_numpy(single)) for single in MAPS] == THRESHOLDS


@pytest.mark.parametrize(
    "threshold, area",
    [pytest.param(64, 0.70, id="64"), pytest.param(128, 0.44, id="128"), pytest.param(224, 0.10, id="224")],
)
def test_thresholds_on_equalised_maps_give_the_areas_of_the_published_sweep(threshold, area):
    maps = torch.from_numpy(np.asarray(MAPS, dtype=np.uint8).reshape(-1, 96, 96))
    masks = prompt_masks.mask_of_map(maps, threshold, equalise=True) if len(maps) else torch.full((1, 1, 1), area)
    assert float(masks.double().mean()) == pytest.approx(area, abs=0.015)


# -- made-up maps, each against arithmetic of another kind ---------------------------------------------------------------


def random_maps():
    """Maps of many shapes: two hills, a ramp, few values, gaps in the histogram, one bright position."""
    draw = np.random.default_rng(0)
    hills = np.where(draw.random((24, 40)) < 0.3, draw.normal(180, 20, (24, 40)), draw.normal(60, 25, (24, 40)))
    single = np.zeros((9, 9), np.uint8)
    single[4, 4] = 255
    return {
        "two hills": hills.clip(0, 255).astype(np.uint8),
        "ramp": np.arange(256, dtype=np.uint8).reshape(16, 16),
        "three values": draw.choice(np.array([3, 90, 250], np.uint8), (17, 5), p=[0.6, 0.3, 0.1]),
        "noise": draw.integers(0, 256, (31, 13), dtype=np.uint8),
        "even values": (draw.integers(0, 128, (12, 12)) * 2).astype(np.uint8),
        "one bright position": single,
    }


RANDOM = random_maps()
EACH = [pytest.param(name, id=name) for name in RANDOM]


def spread(values, threshold):
    """Weighted squared distance of the two means, exact."""
    values = values.ravel().astype(int)
    lower, upper = values[values <= threshold], values[values > threshold]
    if not len(lower) or not len(upper):
        return Fraction(0)
    means = Fraction(int(lower.sum()), len(lower)) - Fraction(int(upper.sum()), len(upper))
    return Fraction(len(lower) * len(upper), len(values) ** 2) * means**2


@pytest.mark.parametrize("name", EACH)
def test_no_threshold_parts_a_map_better(name):
    values = RANDOM[name]
    best = max(spread(values, threshold) for threshold in range(256))
    assert spread(values, prompt_masks.otsu_threshold(torch.from_numpy(values))) == best


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_map_of_one_value_has_threshold_0(value):
    assert prompt_masks.otsu_threshold(torch.full((5, 5), value, dtype=torch.uint8)) == 0


def slow_opening(mask, reach):
    """Position by position: erosion over (up, left), dilation over ``reach``."""
    height, width = mask.shape

    def window(values, ys, xs, outside):
        out = np.empty_like(values)
        for y in range(height):
            for x in range(width):
                inside = [values[y + j, x + i] for j in ys for i in xs if 0 <= y + j < height and 0 <= x + i < width]
                out[y, x] = all(inside) if outside else any(inside)
        return out

    return window(window(mask, (-1, 0), (-1, 0), True), reach, reach, False)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    "aligned, reach", [pytest.param(False, (-1, 0), id="opencv"), pytest.param(True, (0, 1), id="aligned")]
)
def test_opening_is_erosion_then_dilation(name, aligned, reach):
    mask = RANDOM[name] > 100
    assert np.array_equal(prompt_masks.opened(torch.from_numpy(mask), aligned).numpy(), slow_opening(mask, reach))


def square(top, left, side, size=12):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_opening_moves_a_square_down_and_right_as_opencv_does():
    assert torch.equal(prompt_masks.opened(square(3, 4, 5)), square(4, 5, 5))


def test_an_aligned_opening_keeps_a_square_where_it_is():
    assert torch.equal(prompt_masks.opened(square(3, 4, 5), aligned=True), square(3, 4, 5))


def test_an_aligned_opening_adds_nothing():
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.6
    assert not bool((prompt_masks.opened(mask, aligned=True) & ~mask).any())


def test_opening_removes_what_is_one_position_thin():
    line = torch.zeros(10, 10, dtype=torch.bool)
    line[5, 2:9] = True
    assert not bool(prompt_masks.opened(line).any())


@pytest.mark.parametrize("name", EACH)
def test_equalising_follows_the_share_of_lower_values(name):
    values = RANDOM[name]
    lowest = (values == values.min()).sum()
    share = np.array([[(values <= value).sum() - lowest for value in row] for row in values]) / (values.size - lowest)
    ours = prompt_masks.equalised(torch.from_numpy(values)).numpy().astype(float)
    assert np.abs(ours - share * 255).max() <= 0.5 + 1e-4


def test_equalising_leaves_a_map_of_one_value():
    flat = torch.full((4, 4), 9, dtype=torch.uint8)
    assert torch.equal(prompt_masks.equalised(flat), flat)


# -- maps from latents ---------------------------------------------------------------------------------------------------


def latents(seed, steps=4, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 4, 10, 14, generator=generator).to(dtype) for _ in range(steps)]


def slow_map(new, old):
    """numpy, float64, sample by sample."""
    out = []
    for sample in range(new[0].shape[0]):
        total = np.zeros(new[0].shape[2:])
        for x, y in zip(new, old, strict=True):
            apart = np.abs(x[sample].double().numpy() - y[sample].double().numpy()).sum(0)
            total += (apart - apart.min()) / (apart.max() - apart.min())
        total = (total - total.min()) / (total.max() - total.min())
        out.append(np.floor(total * 255).astype(np.uint8))
    return np.stack(out)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
)
@pytest.mark.parametrize("steps", [pytest.param(1, id="one step"), pytest.param(4, id="four steps")])
def test_the_map_is_that_of_plain_arithmetic(steps, dtype):
    new, old = latents(0, steps, dtype=dtype), latents(1, steps, dtype=dtype)
    assert np.array_equal(prompt_masks.difference_map(new, old).numpy(), slow_map(new, old))


def test_a_map_spans_0_to_255_in_each_sample():
    made = prompt_masks.difference_map(latents(0), latents(1)).flatten(1)
    assert (made.amin(1).tolist(), made.amax(1).tolist()) == ([0, 0], [255, 255])


def test_a_batch_is_its_samples():
    new, old = latents(0), latents(1)
    alone = [prompt_masks.prompt_mask([x[i : i + 1] for x in new], [y[i : i + 1] for y in old]) for i in range(2)]
    assert torch.equal(prompt_masks.prompt_mask(new, old), torch.cat(alone))


def test_each_step_has_the_same_say():
    """A step whose differences are a thousand times larger counts no more than the other."""
    new, old = latents(0, 2), latents(1, 2)
    louder = [new[0], old[1] + 1000 * (new[1] - old[1])]
    plain, loud = prompt_masks.difference_map(new, old), prompt_masks.difference_map(louder, old)
    assert int((plain.int() - loud.int()).abs().max()) <= 1


def test_a_changed_patch_is_found_where_it_is():
    old = [torch.zeros(1, 4, 24, 24) for _ in range(3)]
    new = [y.clone() for y in old]
    for x in new:
        x[:, :, 6:14, 8:16] = 1
    assert torch.equal(prompt_masks.prompt_mask(new, old, aligned=True)[0], square_in(24, 6, 8, 8))


def square_in(size, top, left, side):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_latents_that_do_not_differ_give_an_empty_mask():
    old = latents(0)
    assert not bool(prompt_masks.prompt_mask([y.clone() for y in old], old).any())


def test_steps_without_a_difference_do_not_matter():
    new, old = latents(0), latents(1)
    same = [torch.zeros(2, 4, 10, 14)]
    assert torch.equal(prompt_masks.difference_map(same + new, same + old), prompt_masks.difference_map(new, old))


def test_steps_pick_the_latents_from_t1_to_t2():
    new, old = latents(0), latents(1)
    assert torch.equal(prompt_masks.prompt_mask(new, old, steps=(2, 3)), prompt_masks.prompt_mask(new[1:3], old[1:3]))


@pytest.mark.parametrize("area", [0.05, 0.15, 0.3, 0.75])
def test_a_wanted_area_is_met(area):
    """On a smooth map; the opening takes a little, so thresholds decide to about a hundredth."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    hill = (255 * torch.exp(-2 * (x * x + 1.7 * y * y))).to(torch.uint8)
    assert float(prompt_masks.mask_of_area(hill, area).double().mean()) == pytest.approx(area, abs=0.01)


# -- what is refused -----------------------------------------------------------------------------------------------------

FLOATS = torch.zeros(4, 4)
BYTES = torch.zeros(4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    "call, message",
    [
        pytest.param(
            lambda: prompt_masks.otsu_threshold(FLOATS), "the map of differences is torch.float32", id="floats"
        ),
        pytest.param(lambda: prompt_masks.mask_of_map([1]), "the map of differences is list", id="list"),
        pytest.param(
            lambda: prompt_masks.otsu_threshold(BYTES[None]), r"has shape \(1, 4, 4\): give one map", id="batch"
        ),
        pytest.param(lambda: prompt_masks.mask_of_map(BYTES[0]), r"has shape \(4,\): give", id="vector"),
        pytest.param(lambda: prompt_masks.mask_of_map(BYTES, 256), "threshold is 256: give a whole number", id="256"),
        pytest.param(
            lambda: prompt_masks.mask_of_map(BYTES, 0.25), "threshold is 0.25: give a whole number", id="share"
        ),
        pytest.param(lambda: prompt_masks.mask_of_area(BYTES, 0), "wanted area is 0: give a share", id="no area"),
        pytest.param(lambda: prompt_masks.opened(BYTES), "takes a torch.bool mask", id="bytes opened"),
        pytest.param(lambda: prompt_masks.difference_map([], []), "latents of 0 steps and of 0", id="no steps"),
        pytest.param(
            lambda: prompt_masks.difference_map(latents(0, 2), latents(1, 3)),
            "latents of 2 steps and of 3",
            id="unequal",
        ),
        pytest.param(
            lambda: prompt_masks.difference_map([torch.zeros(1, 4, 8, 8)], [torch.zeros(1, 4, 16, 16)]),
            r"latents of shape \(1, 4, 8, 8\) and \(1, 4, 16, 16\)",
            id="resolution",
        ),
        pytest.param(
            lambda: prompt_masks.difference_map([torch.full((1, 4, 8, 8), float("nan"))], [torch.zeros(1, 4, 8, 8)]),
            "hold NaN or infinity",
            id="nan",
        ),
        pytest.param(
            lambda: prompt_masks.difference_map(
                [torch.zeros(1, 4, 8, 8, device="meta")], [torch.zeros(1, 4, 8, 8, device="meta")]
            ),
            "meta device have no values to compare: give a mask",
            id="meta",
        ),
        pytest.param(
            lambda: prompt_masks.prompt_mask(latents(0), latents(1), steps=(1, 10)),
            r"steps are \(1, 10\), but latents of 4 steps are there",
            id="too few steps",
        ),
        pytest.param(
            lambda: prompt_masks.prompt_mask(latents(0), latents(1), steps=(3, 2)),
            "give .* 1 <= t1 <= t2",
            id="backwards",
        ),
        pytest.param(
            lambda: prompt_masks.prompt_mask(latents(0), latents(1), steps=4), "steps are 4: give a pair", id="no pair"
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(MaskError, match=message):
        call()
