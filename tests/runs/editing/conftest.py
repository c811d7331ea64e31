"""Small pipelines of each kind, and a task on a picture that the text-to-image one makes."""

import pytest
import torch

from sige.runs.editing.task import EditTask
from sige.runs.models import text_to_image


@pytest.fixture(scope="session")
def pipes():
    return {kind: text_to_image.small_pipeline(kind=kind) for kind in ("text", "inpaint", "instruct")}


@pytest.fixture(scope="session")
def pipe(pipes):
    return pipes["text"]


@pytest.fixture
def make_task():
    def make(prompt="a dog on a sofa", new_prompt="a cat on a sofa", **more):
        settings = {"seed": 3, "steps": 4, "guidance_scale": 4.0, "height": 64, "width": 64}
        return EditTask(prompt, new_prompt, **{**settings, **more})

    return make


@pytest.fixture
def half():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 8:] = True
    return mask


@pytest.fixture
def spot():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:6, 4:6] = True
    return mask


@pytest.fixture
def stock():
    """The stock pipeline's picture of a prompt, (3, H, W)."""

    def run(pipe, task, prompt, **more):
        return pipe(
            prompt,
            num_inference_steps=task.steps,
            guidance_scale=task.guidance_scale,
            generator=torch.Generator().manual_seed(task.seed),
            output_type="pt",
            **more,
        ).images[0]

    return run
