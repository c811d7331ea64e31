"""SDTP: the new prompt from the same start noise. Nothing holds the rest of the picture."""

from sige.runs.editing import pictures
from sige.runs.editing.meter import Meter
from sige.runs.editing.task import EditResult, EditTask

KIND = "text"
OPTIONS = {}


def edit(pipe, task: EditTask) -> EditResult:
    """One run of the stock pipeline: ``steps`` U-Net calls of a batch of two."""
    pictures.check(pipe, KIND, "sdtp")
    pictures.settings(task, OPTIONS, "sdtp")
    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
        with meter.part("edit"):
            after = pipe(task.new_prompt, **pictures.size(task), **pictures.sampling(task)).images[0]
    return pictures.result(meter, before, after)
