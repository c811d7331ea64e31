"""Changes of prompts for experiments on edits by text: a few of each kind, and a row of edits of one picture.

Short and plain, so that they fit into the text encoder of the project's small pipeline, whose tokenizer reads letter by letter.
No pictures belong to them: a pipeline makes the original from the old prompt and a seed.
"""

from dataclasses import dataclass

from sige.datasets.edit import UnknownEdit

KINDS = ("swap", "addition", "removal", "reweight", "mixed", "unrelated")


@dataclass(frozen=True)
class PromptPair:
    """A change of a prompt.

    name: as in ``names()``.   kind: one of ``KINDS``.   old, new: the prompts; equal where only weights change.
    weights: (word, factor) pairs of the new prompt, empty without re-weighting.
    """

    name: str
    kind: str
    old: str
    new: str
    weights: tuple = ()


_PAIRS = (
    PromptPair("dog-cat", "swap", "a dog on a sofa", "a cat on a sofa"),
    PromptPair("apples-lemons", "swap", "a bowl of apples on a table", "a bowl of lemons on a table"),
    PromptPair("summer-winter", "swap", "a wooden house in summer", "a wooden house in winter"),
    PromptPair("red-white", "swap", "a red barn beside a lake", "a white barn beside a lake"),
    PromptPair("hat", "addition", "a dog on a sofa", "a dog with a hat on a sofa"),
    PromptPair("fireworks", "addition", "mountains at night", "mountains at night under fireworks"),
    PromptPair("boat", "addition", "an empty beach", "an empty beach with a sailing boat"),
    PromptPair("no-plant", "removal", "a desk with a lamp and a plant", "a desk with a lamp"),
    PromptPair("no-cars", "removal", "a street with parked cars", "a street"),
    PromptPair("redder", "reweight", "a field of red flowers", "a field of red flowers", (("red", 2.0),)),
    PromptPair("less-snow", "reweight", "a snowy street at dusk", "a snowy street at dusk", (("snowy", 0.3),)),
    PromptPair("storm", "mixed", "a small boat on a lake", "a large ship on a stormy lake at night"),
    PromptPair("elsewhere", "unrelated", "a dog on a sofa", "snowy mountains"),
)

# One picture, edited ten times in a row: each prompt differs from the one before in a word or a phrase.
SEQUENCE = (
    "a valley under a cloudy sky",
    "a valley with a river under a cloudy sky",
    "a valley with a lake under a cloudy sky",
    "a valley with a frozen lake under a cloudy sky",
    "a valley with a frozen lake under a starry sky",
    "a valley with a frozen lake and a hut under a starry sky",
    "a valley with a frozen lake and a castle under a starry sky",
    "a snowy valley with a frozen lake and a castle under a starry sky",
    "a snowy valley with a frozen lake and a castle under a red sky",
    "a snowy valley with a frozen lake under a red sky",
    "a snowy valley with a frozen lake and deer under a red sky",
)


def names(kind: str | None = None) -> list[str]:
    """Names of the pairs, of one kind or of all. UnknownEdit for a kind that is none of ``KINDS``."""
    if kind is not None and kind not in KINDS:
        raise UnknownEdit(f"unknown kind of prompt change {kind!r}; there are {', '.join(KINDS)}.")
    return [pair.name for pair in _PAIRS if kind in (None, pair.kind)]


def load(name: str) -> PromptPair:
    """The pair ``name``; UnknownEdit lists what exists."""
    for pair in _PAIRS:
        if pair.name == name:
            return pair
    raise UnknownEdit(f"unknown prompt pair {name!r}; there are {', '.join(names())}.")
