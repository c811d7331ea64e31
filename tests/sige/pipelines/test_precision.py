"""Pipelines in 16 bits, and state stored in fewer bits than the pipeline computes in."""

import dataclasses

import pytest
import torch

import sige
from sige.runs.models import text_to_image

STEPS = 2
OLD, NEW = "a dog on a sofa", "a cat on a sofa"
TYPES = [pytest.param(kind, id=str(kind).removeprefix("torch.")) for kind in (torch.bfloat16, torch.float16)]


@pytest.fixture(scope="module", params=TYPES)
def narrow(request):
    pipe = text_to_image.small_pipeline(seed=0, size=64)
    return pipe.to(request.param), request.param


def test_outside_the_mask_bits_are_the_recording(make_session, narrow, where):
    session = make_session(pipe=narrow[0])
    picture = session.generate(OLD, steps=STEPS)
    edited = session.edit(NEW, mask=where)
    assert picture.latents.dtype == narrow[1] and picture.image.dtype == torch.float32
    assert torch.equal(edited.latents[:, :, ~where], picture.latents[:, :, ~where])
    assert not torch.equal(edited.latents[:, :, where], picture.latents[:, :, where])


def test_full_mask_edit_is_near_the_dense_pipeline(make_session, narrow, dense, distance):
    session = make_session(pipe=narrow[0])
    session.generate(OLD, steps=STEPS)
    edited = session.edit(NEW, mask=torch.ones(16, 16, dtype=torch.bool), dense_first=1)
    assert distance(edited.image, dense(session.pipe, NEW, num_inference_steps=STEPS).float()) < 0.05


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.bfloat16, id="bfloat16"), pytest.param(torch.float8_e4m3fn, id="float8")]
)
def test_state_in_fewer_bits(make_pipe, make_session, where, distance, dtype):
    plain = make_session()
    policy = dataclasses.replace(plain.policy, state_dtype=dtype)
    small = sige.Session(make_pipe(), policy, vae_policy=policy)
    edits = []
    for session in (plain, small):
        session.generate(OLD, steps=STEPS)
        edits.append(session.edit(NEW, mask=where))
    assert sum(small.state_bytes().values()) < 0.75 * sum(plain.state_bytes().values())
    assert 0 < distance(edits[1].image, edits[0].image) < 0.05
