"""Pipelines on a GPU give what they give on the CPU: pictures and masks of the CPU meet the GPU's tensors where they must.

The GPU is not there, see tests/pretended.py.
"""

import copy

import pytest
import torch
from pretended import gpu

import sige

STEPS, OLD, NEW = 4, "a dog on a sofa", "a cat on a sofa"
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5
MASK = torch.zeros(64, 64, dtype=torch.bool)
MASK[20:36, 24:40] = True
PAINTED = torch.where(MASK, PICTURE + 0.4, PICTURE)


def worded(session, _):
    session.generate(OLD, seed=3, steps=STEPS)
    yield session.edit(NEW, mask=MASK[::4, ::4])
    session.commit()
    yield session.edit("a bird on a sofa", mask_steps=(1, 2))


def held(session, _):
    session.generate(OLD, seed=3, steps=STEPS, attention_control=True)
    yield session.edit(NEW, mask=MASK, attention_control=True)
    yield session.edit(mask=MASK, prompt_weights={"sofa": 2.0})


def painted(session, _):
    session.generate(OLD, seed=3, steps=STEPS, image=PICTURE, strength=0.6)
    yield session.edit(image=PAINTED)
    session.commit()
    yield session.edit(image=PICTURE.to(session.original.image.device), mask=MASK)


def painted_on(session, _):
    made = session.generate(OLD, seed=3, steps=STEPS).image
    yield session.edit(image=torch.where(MASK.to(made.device), 1 - made, made), strength=0.6)


def reopened(session, folder):
    session.generate(OLD, seed=3, steps=STEPS, image=PICTURE, strength=0.6)
    session.save(folder)
    yield sige.pipelines.reopen(folder, session.pipe).edit(image=PAINTED)


def in_painted(session, _):
    session.generate(OLD, seed=3, steps=STEPS, image=PICTURE, mask_image=torch.zeros_like(MASK))
    yield session.edit(mask=MASK)
    session.commit()
    yield session.edit(NEW, mask=MASK.roll(20, 1).to(session.original.image.device))


def wordless(session, _):
    session.generate(seed=3, steps=STEPS, image=PICTURE, strength=0.6)
    yield session.edit(image=PAINTED)


@pytest.mark.parametrize(
    "kind, story",
    [
        pytest.param("text", worded, id="new words"),
        pytest.param("text", held, id="attention held"),
        pytest.param("text", painted, id="a painted picture"),
        pytest.param("text", painted_on, id="painted on what was made"),
        pytest.param("text", reopened, id="a painted picture after reopening"),
        pytest.param("inpaint", in_painted, id="in-painting"),
        pytest.param("unconditional", wordless, id="no words"),
    ],
)
def test_an_edit_is_the_one_of_the_cpu(make_pipe, make_session, distance, tmp_path, kind, story):
    pipe = make_pipe(kind)
    exact = list(story(make_session(pipe=pipe), tmp_path / "here"))
    with gpu():
        there = type(pipe)(
            **copy.deepcopy(pipe.components), **({} if kind == "unconditional" else {"requires_safety_checker": False})
        )
        there.set_progress_bar_config(disable=True)
        found = list(story(make_session(pipe=there.to("cuda")), tmp_path / "there"))
        assert [one.image.device.type for one in found] == ["cuda"] * len(found)
        got = [(one.image.cpu(), one.mask.cpu()) for one in found]
    assert all(torch.equal(mask, other.mask) for (_, mask), other in zip(got, exact, strict=True))
    assert max(distance(image, other.image) for (image, _), other in zip(got, exact, strict=True)) < 1e-3
