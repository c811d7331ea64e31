"""Dials of a model: what a network's published configuration changes of a policy, under what a method changes itself."""

import pytest
import runner_fakes as fakes

from sige.runs.errors import UserError
from sige.runs.jobs import expand
from sige.runs.methods import session
from sige.runs.models.zoo import Zoo

HARDWARE = {"dtype": "float32"}
MODEL = {**fakes.MODEL, "dials": {"sige": {"min_resolution": 16, "dense_modules": ["second"], "dilation": 2}}}


def policy_of(options, model=MODEL):
    runner = session.build("method", {"policy": "sige", **options}, Zoo(model, "meta"), HARDWARE)
    return runner.session.policy


def test_a_models_dials_change_the_named_policy():
    policy = policy_of({})
    assert (policy.min_resolution, policy.dense_modules, policy.dilation) == (16, ("second",), 2)


def test_the_methods_own_dials_lie_over_the_models():
    policy = policy_of({"dials": {"min_resolution": 4}})
    assert (policy.min_resolution, policy.dilation) == (4, 2)


def test_another_policy_is_untouched():
    from sige import POLICIES

    assert policy_of({"policy": "incremental"}) == POLICIES["incremental"]


def test_lists_in_lists_become_the_pairs_of_a_policy():
    dials = {"block": [[2, 8], 4], "geometry": "tile", "block_choices": [[2, 2], [4, 8]]}
    policy = policy_of({"dials": dials})
    assert (policy.block, policy.block_choices) == (((2, 8), 4), ((2, 2), (4, 8)))


def test_dials_are_part_of_the_runs_identity():
    texts = set()
    for dials in (None, {"sige": {"dilation": 2}}, {"sige": {"dilation": 3}}):
        methods = {"sige": {"runner": "sige.runs.methods.session", "policy": "sige"}}
        (job,) = expand(fakes.configuration(model={**fakes.MODEL, "dials": dials}, method=methods), {})
        texts.add(job["config"])
    assert len(texts) == 3


@pytest.mark.parametrize(
    "dials, sentence",
    [
        pytest.param({"sieg": {}}, "model fake: dials for the unknown policy 'sieg'; there are", id="policy"),
        pytest.param({"sige": {"norms": 1}}, "method sige: unknown policy dial 'norms'; there are name", id="dial"),
        pytest.param({"sige": {"norm": "frozen"}}, "method sige: policy norm='frozen' is unknown", id="value"),
    ],
)
def test_dials_that_fit_nothing_are_refused(dials, sentence):
    methods = {"sige": {"runner": "sige.runs.methods.session", "policy": "sige"}}
    with pytest.raises(UserError) as told:
        expand(fakes.configuration(model={**fakes.MODEL, "dials": dials}, method=methods), {})
    assert str(told.value).startswith(sentence)
