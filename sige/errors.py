"""What can go wrong, one class a cause. Every message names the offending value and what would be right."""


class SigeError(Exception):
    """Base of every error that the engine raises on purpose."""


class PolicyError(SigeError, ValueError):
    """A policy name or a policy value that cannot be used."""


class MaskError(SigeError, ValueError):
    """An edit mask of the wrong type, shape or resolution."""


class RecordingError(SigeError, RuntimeError):
    """The session is not in the right state: nothing recorded, nothing to undo, a recorded map modified from outside."""


class ChangedInputError(SigeError, ValueError):
    """An input differs from the recording where the edit did not declare a change."""


class PathError(SigeError, RuntimeError):
    """The model took another path through its layers than it did while recording."""


class ModelError(SigeError, RuntimeError):
    """A model that the engine cannot follow (compiled, data-parallel, not a module).

    No TypeError: raised inside ``a * b``, PyTorch would take that for an operator that does not exist.
    """


class NonFiniteError(SigeError, ValueError):
    """An input holds NaN or infinity."""


class PromptError(SigeError, ValueError):
    """A prompt, or a pair of prompts, that the text encoder or the edit cannot use."""


class StorageError(SigeError, RuntimeError):
    """State that cannot be written (a full disk) or read (a file that is missing, truncated, altered or of another version)."""


class BudgetError(SigeError, ValueError):
    """A memory budget that does not hold what a single step needs."""
