"""What an edit asks for, read against the recording: new prompts, a mask, a picture with changes, or nothing at all."""

import dataclasses

import torch

from sige.errors import MaskError, PromptError
from sige.pipelines import fitting, sampling
from sige.pipelines.prompts import compare, token_weights


@dataclasses.dataclass
class Wish:
    """An edit as it will be run.

    request: what the pipeline is asked by.   kept: what the session's request is after ``commit``.
    mask: bool (B, h, w) at the latents' resolution, None: to be found.   source: ``user``, ``difference`` or ``prompt``.
    changes: PromptChange of each picture, None without prompts.   same: for each picture whether its text stays.
    reason: why there is nothing to do, None where there is.
    """

    request: sampling.Request
    kept: sampling.Request
    mask: torch.Tensor | None
    source: str
    changes: list | None
    same: list
    reason: str | None = None


def read_edit(session, prompt, mask, image, strength, prompt_weights):
    """The :class:`Wish` of an edit of ``session``'s pictures. Errors name what does not fit the recording."""
    old, batch = session.request, session.request.batch
    if old.prompts is None and (prompt is not None or prompt_weights is not None):
        raise PromptError(f"{type(session.pipe).__name__} knows no prompt: edit with a picture, edit(image=...)")
    if all(value is None for value in (prompt, mask, image, prompt_weights)):
        raise MaskError("nothing to edit: give a prompt, an image or both, and a mask if you like")
    prompts = old.prompts if prompt is None else sampling.as_list("prompts", prompt, batch, str)
    weights = _inherited(session.pipe, old, prompts)
    if prompt_weights is not None:
        weights = sampling.read_weights(prompt_weights, batch)
    changes, same = _compare(session.pipe, old, prompts, weights)
    kept = dataclasses.replace(old, prompts=prompts, weights=weights)
    where, pixels, source = None, None, "prompt"
    if mask is not None:
        sizes = session.original.latents.shape[2:], session.original.image.shape[2:]
        (where, pixels), source = fitting.fit_mask(mask, batch, *map(tuple, sizes)), "user"
    request, other_image = kept, False
    if strength is not None:
        sampling.check_strength(strength, image if old.image is None else old.image)
        request = dataclasses.replace(request, strength=strength)
    if image is not None:
        changed, full = _composite(session, image, pixels)
        other_image = bool(changed.any())
        request = dataclasses.replace(request, image=full)
        if where is None:
            size = tuple(session.original.latents.shape[2:])
            where, source = fitting.fit_mask(changed, batch, size, tuple(full.shape[2:]))[0], "difference"
    elif old.mask_image is not None and pixels is not None:
        request = dataclasses.replace(request, mask_image=old.mask_image | pixels)
        other_image = not torch.equal(request.mask_image, old.mask_image)
    if old.image is not None:  # a picture that was generated from text stays one
        kept = dataclasses.replace(request, strength=old.strength)
    reason = None
    if where is not None and not where.any():
        reason = "the edit mask is empty"
    elif all(same) and not other_image and (strength is None or old.strength == strength):
        reason = "neither prompt nor picture changed"
    return Wish(request, kept, where, source, changes, same, reason)


def _compare(pipe, old, prompts, weights):
    if prompts is None:
        return None, [True] * old.batch
    none = [None] * old.batch
    changes, same = [], []
    for before, after, had, has in zip(old.prompts, prompts, old.weights or none, weights or none, strict=True):
        change = compare(pipe.tokenizer, before, after, has)
        changes.append(change)
        same.append(change.kind in ("same", "reweight") and (had or None) == (has or None))
    return changes, same


def _inherited(pipe, old, prompts):
    """The recording's weights, of the words that are still in the prompts."""
    if not old.weights:
        return old.weights

    def there(prompt, phrase, factor):
        try:
            return bool(token_weights(pipe.tokenizer, prompt, {phrase: factor}))
        except PromptError:
            return False

    pairs = zip(prompts, old.weights, strict=True)
    kept = [{word: x for word, x in (had or {}).items() if there(prompt, word, x)} or None for prompt, had in pairs]
    return kept if any(kept) else None


def _composite(session, image, pixels):
    """(where it differs visibly, or the user's mask; the picture with what is outside as it was) for a user's picture.

    Users paint on the picture that the recording began with, or on the one that came out: the nearer of the two is meant.
    """
    old, shown = session.request, session.original.image.cpu()
    image = fitting.fit_image(image, old.batch, tuple(shown.shape[2:]))
    bases = [shown] if old.image is None else [old.image, shown]
    differences = [fitting.changed_pixels(base, image) for base in bases]
    changed = min(differences, key=lambda found: int(found.sum()))
    inside = changed if pixels is None else pixels
    return inside & changed, torch.where(inside[:, None], image, bases[0])
