"""Errors of the runner. Every message is one sentence that names the value and what would be right."""


class UserError(Exception):
    """Something the user asked for cannot be done; the app prints the sentence and ends with exit code 2."""


class StoreError(Exception):
    """The results table could not be written; what is in it is unharmed. Exit code 3."""


class JobFailure(Exception):
    """A job, or one method of it, cannot give numbers for a known reason: a row with this status and reason."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, its class named where the message alone says too little."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if isinstance(error, JobFailure) and text else f"{name}: {text}" if text else name


def status_of(error: BaseException) -> tuple[str, str]:
    """(status, reason) of a failure row for an exception that was raised while measuring."""
    if isinstance(error, JobFailure):
        return error.status, error.reason
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or "OutOfMemoryError" in names
        or "can't allocate memory" in text
        or "out of memory" in text
    ):
        return "oom", one_line(error)
    # Settings that make no sense together; anything else the engine refuses is an error of that run.
    if names & {"PolicyError", "MaskError"}:
        return "invalid", one_line(error)
    return "error", one_line(error)
