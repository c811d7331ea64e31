"""Methods of experiments on whole edits: their options are read by the metric that runs them."""

from sige.runs.errors import JobFailure, UserError


def check(options: dict, model: dict | None = None) -> None:
    """UserError where the model is no pipeline, or the policy is none that can be used with it."""
    if model is not None and not model.get("bench"):
        raise UserError(
            f"it runs a whole pipeline, and {model.get('name')} is a network on its own; choose model=small_text_to_image."
        )
    if "policy" in options:
        from sige.runs.methods import session

        session.check({"policy": options["policy"], "dials": options.get("dials")}, model)


def build(name: str, options: dict, zoo, hardware: dict):
    """JobFailure (invalid): there is nothing that could be measured on one step."""
    raise JobFailure("invalid", f"{name} runs a whole pipeline; it cannot be measured on one step.")
