"""Which operators of a traced step become one where launches are dear, which must not, and that the results stay."""

import pytest
import torch
from test_fusion import PLACES, Given, NoMemory
from test_other_masks import CROSSED, MOVED, edits
from test_replay import maps, same, steps_of, tensor_times

from sige.kernels import backends, ops
from sige.replay.fusion import fuse
from sige.replay.tracer import Tracer

TILES = torch.tensor([5])


def merged(step, prepare=lambda given: None):
    """Names of the operators that a step is made of once it is merged, without views."""
    given = Given()
    prepare(given)
    tracer = Tracer([], NoMemory())
    with tracer, torch.no_grad():
        made = step(given)
    made = made if isinstance(made, tuple) else (made,)
    at_end = {tracer.number(tensor) for tensor in made if tensor is not None}
    calls = fuse(tracer.calls, tracer.looks, at_end, merge=True)
    return [call[0]._schema.name.split("::")[1] for call in calls if not call[0].is_view]


def statistics(given, rows=None, **changed):
    """A norm's statistics after the rows, three of one tile, changed."""
    rows = given.residual if rows is None else rows
    settings = dict(groups=16, map_values=9) | changed
    return ops.update_statistics_(rows, given.sums, TILES, given.scale, given.totals, **settings)


def normed(given, rows=None, activation="silu", target=None):
    rows = given.residual if rows is None else rows
    old, totals, scale, shift = statistics(given, rows)
    made = ops.affine_rows(rows, scale, shift)
    if activation:
        made = ops.activate_rows(made, activation=activation)
    return old, totals, made if target is None else ops.exchange_rows_(target, PLACES, made)


def read_between(given):
    old, totals, scale, shift = statistics(given)
    before = given.target + 1
    made = ops.exchange_rows_(given.target, PLACES, ops.affine_rows(given.residual, scale, shift))
    return old, totals, before, made


def rows_written_between(given):
    rows = given.residual
    old, totals, scale, shift = statistics(given)
    rows.mul_(2)
    return old, totals, ops.affine_rows(rows, scale, shift)


def scale_handed_on(given):
    old, totals, scale, shift = statistics(given)
    return old, totals, scale, ops.affine_rows(given.residual, scale, shift)


def of_other_rows(given):
    old, totals, scale, shift = statistics(given)
    return old, totals, ops.affine_rows(given.residual + 1, scale, shift)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(normed, id="norm and activation"),
        pytest.param(lambda g: normed(g, activation=None), id="norm alone"),
        pytest.param(lambda g: normed(g, target=g.target), id="into a map"),
    ],
)
def test_a_norm_that_its_rows_change_is_one(step):
    assert merged(step) == ["normalize_rows_"]


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(read_between, ["update_statistics_", "add", "activate_rows"], id="map read between"),
        pytest.param(rows_written_between, ["update_statistics_", "mul_", "affine_rows"], id="rows written to"),
        pytest.param(scale_handed_on, ["update_statistics_", "affine_rows"], id="scale wanted"),
        pytest.param(of_other_rows, ["update_statistics_", "add", "affine_rows"], id="map of other rows"),
    ],
)
def test_a_norm_that_must_stay_apart_does(step, expected):
    assert merged(step) == expected


def wide(given):
    """Operands of 32 channels."""
    for name in ("scale", "shift", "target"):
        setattr(given, name, torch.cat([getattr(given, name)] * 2, 1))
    given.square = torch.cat([given.square] * 2, 1)


def side_by_side(given, rest=None):
    return torch.cat([given.residual, given.residual + 1 if rest is None else rest], 1)


def block(given, rest=None):
    """What a U-Net does with rows that skipped some levels: norm, activation, into a map; and the shortcut."""
    rows = side_by_side(given, rest)
    made = ops.activate_rows(ops.affine_rows(rows, given.scale, given.shift), activation="silu")
    return ops.exchange_rows_(given.target, PLACES, made), ops.linear_rows(rows, given.square, None)


def statistics_of_both(given):
    """The norm's own statistics are not merged with anything, and read one tensor."""
    sums = torch.cat([given.sums] * 2, 1)
    rows = side_by_side(given)
    return ops.update_statistics_(
        rows, sums, TILES, given.scale, torch.cat([given.totals] * 2, 1), groups=32, map_values=9
    )


def map_written_between(given):
    rows = side_by_side(given, ops.gather_rows(given.map, PLACES))
    given.map.mul_(2)
    return ops.linear_rows(rows, given.square, None)


def into_the_map_that_is_read(given):
    rows = side_by_side(given, given.target[:, :16].index_select(0, PLACES))
    return ops.exchange_rows_(given.target, PLACES, ops.affine_rows(rows, given.scale, given.shift))


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(block, ["add", "activate_rows", "conv_rows_fused"], id="rows"),
        pytest.param(
            lambda g: block(g, ops.gather_rows(g.map, PLACES)), ["activate_rows", "conv_rows_fused"], id="rows of a map"
        ),
        pytest.param(
            lambda g: block(g, g.map.index_select(0, PLACES)), ["activate_rows", "conv_rows_fused"], id="rows selected"
        ),
        pytest.param(map_written_between, ["gather_rows", "mul_", "conv_rows_fused"], id="map written to"),
        pytest.param(into_the_map_that_is_read, ["index_select", "activate_rows"], id="into the map that is read"),
    ],
)
def test_channels_of_two_tensors_are_read_where_they_lie(step, expected):
    assert merged(step, wide) == expected


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(side_by_side, ["add", "cat"], id="handed on"),
        pytest.param(lambda g: side_by_side(g).tanh(), ["add", "cat", "tanh"], id="another operator"),
        pytest.param(lambda g: torch.cat([g.residual] * 2, 0).tanh(), ["cat", "tanh"], id="rows one after the other"),
        pytest.param(statistics_of_both, ["cat", "add", "cat", "cat", "update_statistics_"], id="statistics"),
    ],
)  # fmt: skip
def test_channels_that_must_be_put_together_are(step, expected):
    assert merged(step, wide) == expected


def weights_first(given):
    """The weights are there before."""
    given.keys, given.values = given.square + 1, given.square + 2


def of_ready_weights(given, keys="map", values="target", biases=(None,) * 3, places=PLACES):
    rows = given.residual
    queries = ops.linear_rows(rows, given.square, biases[0])
    old_keys = ops.exchange_rows_(getattr(given, keys), PLACES, ops.linear_rows(rows, given.keys, biases[1]))
    old_values = ops.exchange_rows_(getattr(given, values), places, ops.linear_rows(rows, given.values, biases[2]))
    return queries, old_keys, old_values


def keys_read_between(given):
    rows = given.residual
    queries = ops.linear_rows(rows, given.square, None)
    before = given.map + 1
    old_keys = ops.exchange_rows_(given.map, PLACES, ops.linear_rows(rows, given.keys, None))
    return (
        queries,
        before,
        old_keys,
        ops.exchange_rows_(given.target, PLACES, ops.linear_rows(rows, given.values, None)),
    )


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(of_ready_weights, id="without biases"),
        pytest.param(lambda g: of_ready_weights(g, biases=(g.bias,) * 3), id="with biases"),
    ],
)
def test_queries_keys_and_values_are_one(step):
    assert merged(step, weights_first) == ["project_rows_"]


def test_keys_and_values_are_written_once_where_two_layers_stand_beside_them():
    def step(given):
        gate = ops.linear_rows(given.residual, given.square, given.bias).tanh()
        return gate, *of_ready_weights(given, biases=(given.bias,) * 3)

    assert sorted(merged(step, weights_first)) == ["linear_rows", "project_rows_", "tanh"]


APART = ["linear_rows", "conv_rows_fused", "conv_rows_fused"]


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(lambda g: of_ready_weights(g, biases=(g.bias, None, g.bias)), APART, id="one without a bias"),
        pytest.param(lambda g: of_ready_weights(g, values="map"), APART, id="one map"),
        pytest.param(lambda g: of_ready_weights(g, places=PLACES + 0)[:3], ["add", *APART], id="other places"),
        pytest.param(keys_read_between, ["linear_rows", "add", "conv_rows_fused", "conv_rows_fused"], id="keys read between"),
    ],
)  # fmt: skip
def test_projections_that_must_stay_apart_do(step, expected):
    assert merged(step, weights_first) == expected


@pytest.fixture
def merging(monkeypatch):
    monkeypatch.setattr(backends, "merges", lambda device_type: True)


@pytest.mark.parametrize("name", ["incremental", "sige", "fisedit"])
def test_merged_steps_give_the_same_bits_and_state(unet, small, images, name, merging):
    plain, _, one = steps_of(unet, small(name), images, tensor_times(), replay=False)
    replayed, _, other = steps_of(unet, small(name), images, tensor_times())
    assert (other.replayed_steps, same(plain, replayed), same(maps(one), maps(other))) == (2, True, True)


@pytest.mark.parametrize("name", ["incremental", "sige"])
def test_undo_takes_merged_steps_back(unet, small, images, name, merging):
    _, _, session = steps_of(unet, small(name), images, tensor_times(), commit=False)
    before, _, fresh = steps_of(unet, small(name), images, tensor_times(), commit=False, replay=False)
    session.undo()
    fresh.undo()
    assert same(maps(fresh), maps(session))


@pytest.mark.parametrize("masks", [pytest.param(MOVED, id="one sample"), pytest.param(CROSSED, id="two samples")])
@pytest.mark.parametrize("name", ["incremental", "sige"])
def test_a_merged_step_serves_other_masks_of_its_shape(unet, small, name, masks, merging):
    plain, _ = edits(unet, small(name), masks, False)
    found, replayed = edits(unet, small(name), masks, True)
    assert (replayed, same(plain, found)) == ([0, 2, 2], True)
