"""Editing methods as a configuration names them.

sdedit:
  runner: sige.runs.editing.runner
  editor: sdedit
  options: {strength: 0.8}
"""

import dataclasses

from sige.runs.editing import registry
from sige.runs.editing.task import EditResult, EditTask
from sige.runs.errors import JobFailure, UserError


def check(options: dict, model: dict | None = None) -> None:
    """UserError for an editor that there is not, or an option that it does not have."""
    editor = registry.find(options.get("editor"))
    for name in options.get("options") or {}:
        if name not in editor.OPTIONS:
            known = ", ".join(editor.OPTIONS) or "none"
            raise UserError(f"{options['editor']} has no option {name!r}; it has {known}.")


def run(options: dict, pipe, task: EditTask) -> EditResult:
    """The task done by the method of ``options``, its settings under those of the task.

    pipe: as in :func:`registry.edit`.
    """
    check(options)
    chosen = dataclasses.replace(task, options={**(options.get("options") or {}), **task.options})
    return registry.edit(options["editor"], pipe, chosen)


def build(name: str, options: dict, zoo, hardware: dict):
    """Where single steps of a network are measured, a method that edits whole pictures has no place: JobFailure (invalid)."""
    raise JobFailure(
        "invalid", f"{name} edits whole pictures by running a pipeline; it cannot be measured on one step."
    )
