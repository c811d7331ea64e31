"""One job of whole edits: a pipeline makes a picture and edits it, all steps, by each method; what ``runs/measure.py`` is for one step.

A model chooses it with ``bench: sige.runs.editing_bench``. A metric sees an :class:`EditBench`: the pipelines, the task, the methods.
"""

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Callable, Iterator

import torch

from sige.datasets import prompt_pairs
from sige.datasets.edit import Edit
from sige.runs.editing.task import EditTask
from sige.runs.errors import JobFailure, status_of
from sige.runs.measure import load_edit
from sige.runs.metrics import Reading
from sige.runs.models.pipelines import Pipelines


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to edit a whole picture: its name, its YAML, and the arithmetic that it runs in."""

    name: str
    options: dict
    dtype: str


class EditBench:
    """What the metrics of one job work on.

    pipes: kind -> pipeline.   runners: name -> :class:`Method`, those that have not failed.   task: the
    :class:`~sige.runs.editing.task.EditTask`, with a mask where the edit is one; prompts: of the whole row of edits.
    edit: what the data set gave.   samples: raw timings to keep.
    """

    def __init__(self, job: dict, pipes: Pipelines, tick: Callable[[], None] = lambda: None):
        self.job, self.pipes, self.tick = job, pipes, tick
        self.failures: dict[str, tuple[str, str]] = {}
        self.samples: dict[str, dict] = {}
        self.on_meta = job["hardware"]["device"] == "meta"
        self.edit = load_edit(job)
        dtype = job["hardware"]["dtype"]
        self.runners = {name: Method(name, options, dtype) for name, options in job["methods"].items()}
        self.task, self.prompts = self._task()

    def _task(self):
        model, mask, weights = self.job["model"], None, ()
        height, width = model["input"]["height"], model["input"]["width"]
        if isinstance(self.edit, Edit):  # a mask: the prompts are the model's own choice
            pair = prompt_pairs.load(model["pair"])
            prompts, mask = (pair.old, pair.new), self._at_latents(self.edit.mask, height, width)
        else:
            prompts, weights = self.edit.prompts, self.edit.weights
        task = EditTask(
            prompts[0],
            prompts[1],
            seed=self.job["seed"],
            steps=model["steps"],
            guidance_scale=model["guidance_scale"],
            height=height,
            width=width,
            mask=mask,
        )
        self.weights = dict(weights)
        return task, prompts

    def _at_latents(self, mask, height, width):
        """A mask at any resolution finer than the latents', as one of theirs: a position counts where any pixel of it does."""
        from sige import masks

        size = (height // self.job["model"]["reduction"], width // self.job["model"]["reduction"])
        if any(side % latent for side, latent in zip(mask.shape, size, strict=True)):
            have, want = ("x".join(map(str, shape)) for shape in (tuple(mask.shape), size))
            raise JobFailure("invalid", f"edit {self.edit.name} is {have}; its sides must be multiples of {want}.")
        return masks.reduce_max(mask[None], *size)[0]

    def run(self, name: str, **changes):
        """Edit by a method: an :class:`~sige.runs.editing.task.EditResult`. changes: of the task."""
        from sige.runs.editing import runner

        task = dataclasses.replace(self.task, **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an edit has to say of itself stands in its rows
            return runner.run(self.options(name), self.pipes, task)

    def options(self, name: str) -> dict:
        """A method's YAML, with the model's dials under its own where it is the engine."""
        from sige.runs.methods.session import merged_dials

        given = self.runners[name].options
        own = given.get("options") or {}
        if "policy" in own:
            own = {**own, "dials": merged_dials(own, self.job["model"])}
        return {**given, "options": own}

    def fail(self, method: str, error: BaseException) -> None:
        """Take a method out of the job."""
        self.failures[method] = status_of(error)
        self.runners.pop(method, None)

    @contextlib.contextmanager
    def guard(self, method: str):
        """An exception inside takes this method out and leaves the others alone."""
        try:
            yield
        except Exception as error:
            self.fail(method, error)


def load(model: dict, hardware: dict) -> tuple[Pipelines, None]:
    """What a worker keeps from job to job: the pipelines."""
    return Pipelines(model, "cpu" if hardware["device"] == "meta" else hardware["device"]), None


def measure(job: dict, pipes: Pipelines, kept=None, tick=lambda: None) -> Iterator[Reading | EditBench]:
    """Yield the bench first, then every reading of every metric. Failures of methods stand in ``bench.failures``."""
    torch.manual_seed(job["seed"])
    bench = EditBench(job, pipes, tick)
    yield bench
    for options in job["metrics"].values():
        more = {key: value for key, value in options.items() if key != "collect"}
        yield from importlib.import_module(options["collect"]).collect(bench, **more)
        tick()
