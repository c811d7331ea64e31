"""Maps in 8 bits with a scale: what is lost, that nothing overflows, and what it costs an edit in error."""

import math

import pytest
import torch

from sige.state.packed import Packed, pack
from sige.state.stored import Stored

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def normal(*shape, scale=1.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(torch.float64) * scale).to(dtype)


@pytest.mark.parametrize(
    "scale, dtype",
    [
        pytest.param(1, torch.float32, id="one"),
        pytest.param(1e30, torch.float32, id="huge"),
        pytest.param(1e-30, torch.float32, id="tiny"),
        pytest.param(1e30, torch.bfloat16, id="huge-bfloat16"),
        pytest.param(1e4, torch.float16, id="large-float16"),
        pytest.param(1e-3, torch.float16, id="small-float16"),
        pytest.param(1e200, torch.float64, id="double"),
    ],
)
def test_the_error_is_the_formats_at_every_size_of_value(relative, scale, dtype):
    rows = normal(300, 40, scale=scale, dtype=dtype)
    found = pack(rows, E4M3).unpacked()
    assert found.dtype == dtype
    assert 0.015 < relative(found / scale, rows / scale) < 0.03


@pytest.mark.parametrize("dtype, most", [pytest.param(E4M3, 1 / 16, id="e4m3"), pytest.param(E5M2, 1 / 8, id="e5m2")])
def test_no_value_in_the_upper_range_is_off_by_more_than_half_a_digit(dtype, most):
    rows = normal(300, 40)
    found = pack(rows, dtype).unpacked()
    large = rows.abs() > rows.abs().max() / 1000
    assert ((found - rows).abs()[large] <= most * rows.abs()[large]).all()


@pytest.mark.parametrize("value", [448.0, 448.1, 447.9, 1e38, 3.2e38, 1e-38, 0.0])
def test_the_largest_value_never_overflows(value):
    found = pack(torch.tensor([[value, -value]]), E4M3).unpacked()
    assert found.isfinite().all()
    assert found.tolist() == [pytest.approx([value, -value], rel=1 / 16)]


def test_the_scale_is_a_power_of_two_and_the_smallest_that_fits():
    packed = pack(normal(100, 8, scale=37.0), E4M3)
    exponent = math.log2(packed.scale.item())
    assert exponent == round(exponent)
    assert 224 < packed.data.float().abs().max() <= 448


def test_packing_what_was_unpacked_loses_nothing():
    packed = pack(normal(100, 8), E4M3)
    assert torch.equal(pack(packed.unpacked(), E4M3).unpacked(), packed.unpacked())


def test_a_map_without_data_is_packed_too():
    packed = pack(torch.empty(6, 4, device="meta"), E4M3)
    assert (packed.data.shape, packed.data.dtype, packed.scale.shape) == ((6, 4), E4M3, ())


def stored(rows):
    packed = pack(rows, E4M3)
    return Stored("kv", packed.data, packed.scale, packed.dtype)


def test_rows_are_read_at_their_places():
    rows = normal(50, 8)
    index = torch.tensor([3, 0, 49])
    assert torch.equal(stored(rows).rows(index), stored(rows).rows()[index])


def test_rows_that_fit_the_scale_leave_the_others_alone():
    one, rows = stored(normal(50, 8)), normal(2, 8, scale=0.5)
    before = one.rows()
    one.write(torch.tensor([7, 30]), rows)
    others = [i for i in range(50) if i not in (7, 30)]
    assert torch.equal(one.rows()[others], before[others])
    assert torch.allclose(one.rows(torch.tensor([7, 30])), rows, rtol=1 / 16, atol=1e-2)


def test_rows_beyond_the_scale_widen_it_for_the_whole_map(relative):
    one, rows = stored(normal(50, 8)), normal(2, 8, scale=40.0)
    before, scale = one.rows(), one.scale.clone()
    one.write(torch.tensor([7, 30]), rows)
    others = [i for i in range(50) if i not in (7, 30)]
    assert one.scale > scale
    assert relative(one.rows(torch.tensor([7, 30])), rows) < 0.05
    assert relative(one.rows()[others], before[others]) < 0.02


def test_maps_take_a_byte_a_value(recorded):
    whole, packed = recorded().state_bytes(), recorded(state_dtype=E4M3).state_bytes()
    assert {kind: whole[kind] / packed[kind] for kind in ("conv_input", "kv")} == pytest.approx(
        {"conv_input": 4, "kv": 4}, rel=0.001
    )


@pytest.mark.parametrize("dtype", [pytest.param(E4M3, id="float8"), pytest.param(torch.bfloat16, id="bfloat16")])
def test_the_recorded_output_is_the_models_own(recorded, dtype):
    outputs = [[step.output[0] for step in recorded(**dial)._steps] for dial in ({}, {"state_dtype": dtype})]
    assert all(map(torch.equal, *outputs))


@pytest.mark.parametrize(
    "dtype, least, most",
    [
        pytest.param(torch.float16, 1e-5, 1e-3, id="float16"),
        pytest.param(torch.bfloat16, 1e-4, 8e-3, id="bfloat16"),
        pytest.param(E4M3, 1e-4, 2e-2, id="float8_e4m3fn"),
    ],
)
def test_error_of_an_edit_by_storage_type(recorded, edit, relative, dtype, least, most):
    """Against the same edit on maps as computed, over the whole output of the last step."""
    exact, found = edit(recorded())[-1], edit(recorded(state_dtype=dtype))[-1]
    assert least < relative(found, exact) < most


def test_what_an_edit_computed_is_packed_when_committed(recorded, edit, images, relative):
    """Edits on top of a committed one: the error stays that of the storage type, and does not grow by what was not committed."""
    results = []
    for dials in ({}, {"state_dtype": E4M3}):
        session = recorded(**dials)
        edit(session, 30 * images[1] * images[2] + images[0] * ~images[2])
        session.commit()
        results.append(edit(session, 20 * images[1] * images[2] + images[0] * ~images[2])[-1])
    assert relative(results[1], results[0]) < 3e-2


def test_undo_returns_to_the_packed_recording(recorded, edit):
    session = recorded(state_dtype=E4M3)
    first = edit(session)
    session.undo()
    assert all(map(torch.equal, edit(session), first))


def test_a_packed_session_is_saved_and_loaded(recorded, edit, unet, tmp_path):
    import sige

    session = recorded(state_dtype=E4M3)
    session.save(tmp_path)
    loaded = sige.Session.load(tmp_path, unet)
    assert loaded.state_bytes() == session.state_bytes()
    assert all(map(torch.equal, edit(loaded), edit(session)))


def test_a_packed_map_is_two_tensors():
    packed = pack(normal(4, 4), E4M3)
    assert isinstance(packed, Packed) and [t.dtype for t in packed.tensors()] == [E4M3, torch.float32]
