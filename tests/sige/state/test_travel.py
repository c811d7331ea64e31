"""Bytes that an edit reads of what is stored: counted from the mask alone, equal to what is loaded."""

import dataclasses

import pytest
import torch

import sige
from sige.state import tiers


def rectangle(height, width, top=20, left=20):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    "policy, changes",
    [
        pytest.param("incremental", {}, id="incremental"),
        pytest.param("incremental", {"state_dtype": torch.float8_e4m3fn}, id="float8"),
        pytest.param("sige_public", {}, id="sige_public"),
        pytest.param("fisedit", {}, id="fisedit"),
    ],
)
def test_what_is_counted_is_what_is_loaded(recorded, edit, tmp_path, images, policy, changes):
    step = tiers.working_bytes(recorded(policy=policy, **changes)._steps[0])
    session = recorded({"memory_budget": step, "state_folder": tmp_path}, policy, **changes)
    edit(session)
    assert session._tiers.loaded == sum(session.travel_bytes(images[2]).values()) > 0


def test_a_convolution_reads_the_ring_around_what_it_computes():
    model = torch.nn.Conv2d(5, 6, 3, padding=1).eval()
    policy = dataclasses.replace(sige.policy("incremental"), block=1, dilation=0, min_resolution=1)
    session, wrapped = (
        sige.Session(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), model), policy),
        rectangle(10, 6),
    )
    with torch.no_grad(), session.record():
        session.model(torch.zeros(1, 3, 64, 64))
    # The second convolution reads (10 + 2) x (6 + 2) positions of 5 channels and computes 10 x 6 of them itself.
    assert session.travel_bytes(wrapped) == {"ring": (12 * 8 - 10 * 6) * 5 * 4, "kv": 0, "sums": 0, "exit": 0}


def test_keys_and_values_travel_whole(recorded):
    session = recorded()
    assert session.travel_bytes(rectangle(4, 4))["kv"] == session.state_bytes()["kv"]


def test_tokens_that_keys_are_projected_from_are_half_as_much(recorded):
    counts = [recorded(kv=kv).travel_bytes(rectangle(4, 4))["kv"] for kv in ("remembered", "reprojected")]
    assert counts[1] == counts[0] / 2


def test_a_larger_edit_has_a_longer_ring(recorded):
    session = recorded()
    rings = [session.travel_bytes(rectangle(side, side))["ring"] for side in (2, 8, 20)]
    assert 0 < rings[0] < rings[1] < rings[2] < 0.5 * session.state_bytes()["conv_input"]


def test_an_edit_of_everything_reads_nothing(recorded):
    assert set(recorded().travel_bytes(rectangle(64, 64, 0, 0)).values()) == {0}


def test_levels_that_run_dense_are_left_through_whole_maps(recorded):
    assert recorded(min_resolution=32, upsample_min_source=0).travel_bytes(rectangle(4, 4))["exit"] > 0


def test_maps_without_data_count_the_same(unet, small, images):
    counts = []
    for device in ("cpu", "meta"):
        model = type(unet).from_config(unet.config).eval().to(device)
        session = sige.Session(model, small("incremental"))
        with torch.no_grad(), session.record():
            model(images[0].to(device), torch.tensor([500]).to(device))
        counts.append(session.travel_bytes(images[2]))
    assert counts[0] == counts[1]


def test_a_budget_places_maps_without_data(unet, small, images):
    model = type(unet).from_config(unet.config).eval().to("meta")
    session = sige.Session(model, small("incremental"), memory_budget={"device": 5_000_000, "host": 3_000_000})
    with torch.no_grad(), session.record():
        for t in (900, 700, 500, 100):
            model(images[0].to("meta"), torch.tensor([t]).to("meta"))
    placed = session.state_tiers()
    assert (placed["disk"], placed["host"]) == (3 * 2_409_472, 2_409_472)
