"""Editing methods by name."""

import dataclasses
import importlib

from sige.runs.editing.task import EditResult, EditTask
from sige.runs.errors import UserError

EDITORS = (
    "sdtp",
    "sdip",
    "prompt_to_prompt",
    "sdedit",
    "instruct_pix2pix",
    "diffedit",
    "plug_and_play",
    "pix2pix_zero",
    "fisedit",
)


def find(name: str):
    """The module of a method; UserError for a name that none has."""
    if name not in EDITORS:
        raise UserError(f"no editing method {name!r}; there are {', '.join(EDITORS)}.")
    return importlib.import_module(f"sige.runs.editing.{name}")


def kind(name: str) -> str:
    """The kind of pipeline that a method runs: text, inpaint or instruct."""
    return find(name).KIND


def edit(name: str, pipe, task: EditTask) -> EditResult:
    """The task done by a method.

    pipe: a pipeline of the method's kind, or a dict of pipelines by kind. Of a dict, the text-to-image one makes the original for
    methods whose own pipeline cannot.
    """
    module = find(name)
    if not isinstance(pipe, dict):
        return module.edit(pipe, task)
    if module.KIND not in pipe:
        raise UserError(f"{name} runs a pipeline of the kind {module.KIND!r}; given are {', '.join(pipe) or 'none'}.")
    if module.KIND == "text" or task.image is not None or "text" not in pipe:
        return module.edit(pipe[module.KIND], task)
    before, calls, seconds = _original(pipe["text"], task)
    result = module.edit(pipe[module.KIND], dataclasses.replace(task, image=before))
    result.calls_by_part = {**calls, **result.calls_by_part}
    result.seconds = {**seconds, **result.seconds}
    return result


def _original(pipe, task):
    from sige.runs.editing import pictures
    from sige.runs.editing.meter import Meter

    with Meter(pipe) as meter:
        before = pictures.original(pipe, task, meter)
    return before.float().cpu(), meter.calls, meter.seconds
