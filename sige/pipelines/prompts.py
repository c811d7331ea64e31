"""Two prompts, word by word: which tokens of the new one stand in the old one, and what kind of change that is.

    change = compare(pipe.tokenizer, "a dog on a sofa", "a dog with a hat on a sofa")
    change.kind            # "addition"
    change.mapping         # for each token position of the new prompt, the position of the same token in the old one, or None

| the prompts | outcome |
|---|---|
| are the same, without weights | kind "same": nothing to edit, ``note`` says so |
| are the same, with weights | kind "reweight" |
| differ by other words in place of some | kind "swap" |
| differ by words more, by words fewer | kind "addition", "removal" |
| differ in several of these ways | kind "mixed" |
| share no word | kind "unrelated": an edit like any other, but attention control has no word to hold; ``note`` says so |
| are longer than the text encoder reads | ``truncated``, ``note`` quotes what is not read |
| differ only in what is not read | PromptError |
"""

import dataclasses
import math

from sige.errors import PromptError

KINDS = ("same", "reweight", "swap", "addition", "removal", "mixed", "unrelated")
_NO_LIMIT = 100_000  # tokenizers of encoders without a limit name an astronomical number


@dataclasses.dataclass(frozen=True)
class PromptChange:
    """What became of a prompt. Positions are those of the text encoder's tokens, specials and padding included.

    kind: one of ``KINDS``.
    mapping: for each position of the new prompt, the position of the same token in the old one; None where it is new. Special
        tokens map to their like, padding to itself where the old prompt has padding there too.
    spans: (old start, old stop, new start, new stop) of each run of changed tokens; one side is empty for words more or fewer.
    weights: for each position of the new prompt, the factor of its attention; None without re-weighting.
    truncated: whether one of the prompts is longer than the encoder reads.
    note: one sentence for the user, or None.
    """

    kind: str
    mapping: tuple
    spans: tuple
    weights: tuple | None = None
    truncated: bool = False
    note: str | None = None

    @property
    def is_same(self):
        """Whether the two prompts ask for the same picture."""
        return self.kind == "same"

    def swapped(self):
        """Old positions that stand for each new position inside exchanged words: {new position: (old position, ...)}.

        A word of as many tokens is taken token by token; otherwise each new token stands for its share of the old ones. So
        Prompt-to-Prompt keeps the place of a word that is exchanged.
        """
        pairs = {}
        for old_start, old_stop, new_start, new_stop in self.spans:
            olds, news = old_stop - old_start, new_stop - new_start
            for i in range(news if olds else 0):
                first = i * olds // news
                last = max(first + 1, math.ceil((i + 1) * olds / news))
                pairs[new_start + i] = tuple(range(old_start + first, old_start + last))
        return pairs


def compare(tokenizer, old, new, weights=None, length=None):
    """The :class:`PromptChange` from prompt ``old`` to prompt ``new``.

    tokenizer: of the pipeline's text encoder.   weights: {word or phrase of the new prompt: factor of its attention}, for
    re-weighting.   length: positions that the encoder reads; None asks the tokenizer.
    PromptError where a prompt is no text, a weighted phrase is not in the new prompt, or the prompts differ only in what is not read.
    """
    for prompt in (old, new):
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is {type(prompt).__name__}: compare two strings, one pair a picture")
    before, after = (_Tokens(tokenizer, prompt, length) for prompt in (old, new))
    size = max(before.size, after.size)
    pairs = _aligned(before.words(), after.words())
    mapping, spans = _token_mapping(before, after, pairs, size)
    factors = token_weights(tokenizer, new, weights, size) if weights else None
    truncated = bool(before.unread or after.unread)
    if not spans and before.ids != after.ids:
        raise PromptError(
            f"the prompts differ only after token {after.readable}, which the text encoder does not read: shorten them, or move "
            "the change to the front"
        )
    kind = _kind(before, after, pairs, spans, factors)
    note = _note(kind, after)
    return PromptChange(kind, mapping, spans, factors, truncated, note)


def token_weights(tokenizer, prompt, weights, length=None):
    """The factor of each token position of ``prompt``, 1.0 where ``weights`` {word or phrase: factor} name none.

    All occurrences of a phrase are weighted. PromptError names a phrase that the encoder does not find in the prompt.
    """
    tokens = _Tokens(tokenizer, prompt, length)
    factors = [1.0] * (length or tokens.size)
    words = tokens.words()
    for phrase, factor in weights.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
            raise PromptError(
                f"the weight of {phrase!r} is {factor!r}: give a finite number, 1 leaves the word as it is"
            )
        wanted = [ids for ids, _ in _Tokens(tokenizer, phrase, length).words()]
        found = [i for i in range(len(words)) if wanted and [ids for ids, _ in words[i : i + len(wanted)]] == wanted]
        if not found:
            raise PromptError(
                f"{phrase!r} has a weight but is not among the words that are read of the prompt {prompt!r}"
            )
        for start in found:
            for place in range(words[start][1], words[start + len(wanted) - 1][1] + len(wanted[-1])):
                factors[place] = float(factor)
    return tuple(factors)


class _Tokens:
    """A prompt as the text encoder reads it: ``head`` special tokens, content, special tokens, padding up to ``size``."""

    def __init__(self, tokenizer, prompt, length=None):
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:
            raise PromptError(
                f"the tokenizer has {len(tokenizer)} tokens in all, so every prompt reads the same: load one with its vocabulary"
            )
        self.tokenizer, self.prompt = tokenizer, prompt
        self.ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        around = tokenizer.num_special_tokens_to_add()
        limit = length or (tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None)
        self.size = limit or len(self.ids) + around
        self.readable = self.size - around
        self.read, self.unread = self.ids[: self.readable], self.ids[self.readable :]
        framed = tokenizer("", truncation=False).input_ids
        self.head = 1 if framed and framed[0] == tokenizer.bos_token_id and around > 1 else 0
        self.tail = around - self.head

    def words(self):
        """[(token ids of a word, position of its first token)] of what is read."""
        pieces = self.tokenizer.convert_ids_to_tokens(self.read)
        ends = any(piece.endswith("</w>") for piece in pieces)
        starts = any(piece.startswith(("\u2581", "\u0120")) for piece in pieces)
        words, start = [], 0
        for place in range(1, len(pieces) + 1):
            last = place == len(pieces)
            if ends:
                whole = last or pieces[place - 1].endswith("</w>")
            else:
                whole = last or not starts or pieces[place].startswith(("\u2581", "\u0120"))
            if whole:
                words.append((tuple(self.read[start:place]), self.head + start))
                start = place
        return words

    def is_speech(self, word):
        """Whether a word (ids, position) holds a letter or a digit: commas in common are nothing in common."""
        return any(character.isalnum() for character in self.tokenizer.decode(list(word[0])))


def _aligned(old, new):
    """Pairs (i, j) of equal words in one order, as many as there can be, in as few runs as there can be, early ones first."""
    nothing = (0, 0)
    best = [
        [nothing] * (len(new) + 1) for _ in range(len(old) + 1)
    ]  # (pairs, neighbouring pairs) of the first i and j words
    ending = [[None] * (len(new) + 1) for _ in range(len(old) + 1)]  # the same where the last two words are a pair
    for i, (word, _) in enumerate(old, 1):
        for j, (other, _) in enumerate(new, 1):
            best[i][j] = max(best[i - 1][j], best[i][j - 1])
            if word == other:
                apart, run = best[i - 1][j - 1], ending[i - 1][j - 1]
                grown = (run[0], run[1] + 1) if run else nothing
                pairs, neighbours = max(apart, grown)
                ending[i][j] = (pairs + 1, neighbours)
                best[i][j] = max(best[i][j], ending[i][j])
    pairs, i, j, inside = [], len(old), len(new), False
    while i and j:
        if not inside and best[i][j] == best[i][j - 1]:
            j -= 1
        elif not inside and best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            pairs.append((i - 1, j - 1))
            run = ending[i - 1][j - 1]
            inside = run is not None and (run[0], run[1] + 1) >= best[i - 1][j - 1]
            i, j = i - 1, j - 1
    return pairs[::-1]


def _token_mapping(before, after, pairs, size):
    """(mapping, spans) of token positions for pairs of words."""
    old, new = before.words(), after.words()
    mapping = [None] * size
    for i, j in pairs:
        for step in range(len(new[j][0])):
            mapping[new[j][1] + step] = old[i][1] + step
    spans, last_old, last_new = [], before.head, after.head
    ends = (before.head + len(before.read), after.head + len(after.read))
    for i, j in [*pairs, (None, None)]:
        next_old, next_new = (old[i][1], new[j][1]) if i is not None else ends
        if next_old > last_old or next_new > last_new:
            spans.append((last_old, next_old, last_new, next_new))
        if i is not None:
            last_old, last_new = next_old + len(old[i][0]), next_new + len(new[j][0])
    for place in range(after.head):
        mapping[place] = place
    for place in range(after.tail):
        mapping[ends[1] + place] = ends[0] + place
    for place in range(max(ends) + after.tail, size):
        mapping[place] = place
    return tuple(mapping), tuple(spans)


def _kind(before, after, pairs, spans, factors):
    if not spans:
        return "reweight" if factors and any(factor != 1 for factor in factors) else "same"
    old, new = before.words(), after.words()
    if old and new and not any(after.is_speech(new[j]) for _, j in pairs):
        return "unrelated"
    gone, come = (any(span[i + 1] > span[i] for span in spans) for i in (0, 2))
    if gone and come:
        both = all(span[1] > span[0] and span[3] > span[2] for span in spans)
        return "swap" if both else "mixed"
    return "removal" if gone else "addition"


def _note(kind, after):
    if kind == "same":
        return "the prompt did not change: there is nothing to edit"
    notes = []
    if kind == "unrelated":
        notes.append(
            "the prompts share no word: attention control has no word to hold, and the mask may cover most of the picture"
        )
    if after.unread:
        rest = after.tokenizer.decode(after.unread).strip()
        notes.append(f"the text encoder reads {after.readable} tokens of the prompt, not {rest!r}")
    return "; ".join(notes) or None
