"""What must hold before a run begins; each failure is one sentence and leaves the session as it was."""

from sige.errors import ChangedInputError, MaskError, RecordingError


def count(name, value, least=1):
    """A whole number of at least ``least``, or RecordingError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecordingError(f"{name}={value!r}: give a whole number of at least {least}")
    return value


def generated(session):
    """RecordingError where a pipeline's session has no picture yet."""
    if session.trajectory is None:
        raise RecordingError("nothing is generated yet: call session.generate(prompt) before this")


def fingerprint(scheduler):
    """A scheduler's class and settings, as text that can be compared and saved."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return f"{type(scheduler).__name__} {sorted(settings.items(), key=lambda item: item[0])}"


def same_scheduler(recorded, scheduler, steps, recorded_steps):
    """ChangedInputError where the pipeline's scheduler, or the wanted number of steps, is not that of the recording."""
    if steps is not None and steps != recorded_steps:
        raise ChangedInputError(
            f"the edit asks for {steps} steps, the recording has {recorded_steps}: an edit repeats the recorded steps; generate again "
            "for another number"
        )
    now = fingerprint(scheduler)
    if now != recorded:
        kinds = recorded.split(" ")[0], now.split(" ")[0]
        what = f"is a {kinds[1]}" if kinds[0] != kinds[1] else f"has other settings than the {kinds[0]}"
        raise ChangedInputError(
            f"the pipeline's scheduler {what}, the picture was generated with {kinds[0]}: put that one back, or generate again"
        )


def start_of(count, recorded, request):
    """The recorded step that a run of ``count`` steps begins with. ChangedInputError where it cannot."""
    if count == recorded or request.image is not None and 0 < count < recorded:
        return recorded - count
    if request.image is None:
        raise ChangedInputError(
            f"the scheduler makes {count} steps, the recording has {recorded}: generate again with the scheduler as it is now"
        )
    why = "no step at all" if count < 1 else f"{count} steps, the recording has {recorded}"
    raise ChangedInputError(f"strength={request.strength} makes {why}: give a strength that the recording covers")


def schedule(mask, dense_first, dense_last, mask_steps, steps):
    """(mask_steps, dense_first) of an edit of ``steps`` steps with defaults filled in. MaskError or RecordingError otherwise."""
    count("dense_last", dense_last, 0)
    if dense_first is not None:
        count("dense_first", dense_first, 0)
    if mask is None:
        mask_steps = (1, max(1, steps // 5)) if mask_steps is None else tuple(mask_steps)
        if len(mask_steps) != 2 or not 1 <= mask_steps[0] <= mask_steps[1] <= steps:
            raise MaskError(
                f"the mask's steps are {mask_steps}: give (t1, t2) with 1 <= t1 <= t2 <= {steps}, the steps of the recording"
            )
        dense_first = mask_steps[1] if dense_first is None else dense_first
        if dense_first < mask_steps[1]:
            raise MaskError(
                f"dense_first={dense_first} ends before step {mask_steps[1]}, the last that the mask is found from: give at least that"
            )
    dense_first = dense_first or 0
    if dense_first + dense_last > steps:
        raise RecordingError(
            f"dense_first={dense_first} and dense_last={dense_last} are more than the {steps} steps of the recording"
        )
    return mask_steps, dense_first
