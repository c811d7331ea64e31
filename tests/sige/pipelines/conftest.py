"""A small stock pipeline and a session on it, shared by the tests of sessions on pipelines."""

import dataclasses

import pytest
import torch

import sige
from sige.runs.models import text_to_image

SIDE, LATENT, STEPS = 64, 16, 4


@pytest.fixture(scope="session")
def make_pipe():
    """``make_pipe(kind="text", scheduler=None, **settings)``: a pipeline of shared weights with a scheduler of its own."""
    made = {}

    def make(kind="text", scheduler=None, **settings):
        import diffusers

        if kind not in made:
            made[kind] = text_to_image.small_pipeline(seed=0, size=SIDE, kind=kind)
        pipe = type(made[kind])(
            **made[kind].components, **({} if kind == "unconditional" else {"requires_safety_checker": False})
        )
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
        return pipe

    return make


@pytest.fixture(scope="session")
def make_session(make_pipe):
    """``make_session(kind="text", scheduler=None, policy=..., **settings)``: a session whose levels are all sparse."""

    def make(kind="text", scheduler=None, policy="incremental", pipe=None, **settings):
        policy = sige.policy(policy)
        if policy.name != "dense":
            changes = {"min_resolution": 4, "upsample_min_source": 4, "block": 2, "dilation": 1, "dense_above": None}
            policy = dataclasses.replace(policy, **changes)
        return sige.Session(make_pipe(kind, scheduler) if pipe is None else pipe, policy, vae_policy=policy, **settings)

    return make


@pytest.fixture(scope="session")
def kept_session(make_session):
    """One session with the picture of "a dog on a sofa", seed 3, five steps, for tests that commit nothing."""
    session = make_session()
    session.generate("a dog on a sofa", seed=3, steps=5)
    return session


@pytest.fixture
def shared(kept_session):
    """The session that tests share; an edit that a test leaves behind is taken back."""
    yield kept_session
    kept_session._drop()


@pytest.fixture(scope="session")
def where():
    """Mask (16, 16) of a rectangle of 6x7 latents."""
    mask = torch.zeros(LATENT, LATENT, dtype=torch.bool)
    mask[4:10, 5:12] = True
    return mask


@pytest.fixture
def elsewhere():
    """Mask (16, 16) of another rectangle, one corner shared with ``where``."""
    mask = torch.zeros(LATENT, LATENT, dtype=torch.bool)
    mask[8:14, 9:15] = True
    return mask


@pytest.fixture
def dense():
    """``dense(pipe, prompt, seed=0, **settings)``: pictures of the stock pipeline alone."""

    def run(pipe, prompt=None, seed=0, **settings):
        settings = {"num_inference_steps": STEPS, "output_type": "pt", **settings}
        return pipe(prompt, generator=torch.Generator().manual_seed(seed), **settings).images

    return run


@pytest.fixture
def distance():
    """``distance(a, b)``: relative L2 distance of ``a`` from ``b``."""
    return lambda a, b: ((a.double() - b.double()).norm() / b.double().norm()).item()
