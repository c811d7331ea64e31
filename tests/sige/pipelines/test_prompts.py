"""Pairs of prompts: the kind of each change, which token stands for which, and a clear word for what cannot be edited."""

import pytest

from sige.errors import PromptError
from sige.pipelines import prompts

WORDS = (
    "a an the dog cat bear on of in with and hat sofa big red photo cake plum river hill sky under fog , . 2"
).split()


def byte_letters():
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(rest))]


def make_tokenizer(length=20):
    """A CLIP tokenizer whose vocabulary holds the words above whole; other words fall into letters."""
    from transformers import CLIPTokenizer

    letters = byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            if merge not in merges:
                merges.append(merge)
            parts[:2] = ["".join(merge)]
            if parts[0] not in pieces:
                pieces.append(parts[0])
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_the_words_of_these_tests_are_one_token_each(tokenizer):
    assert [len(tokenizer(word, add_special_tokens=False).input_ids) for word in WORDS] == [1] * len(WORDS)


@pytest.mark.parametrize(
    "old, new, kind",
    [
        pytest.param("a dog", "a dog", "same", id="same"),
        pytest.param("a dog", "A  DOG", "same", id="same but for case and blanks"),
        pytest.param("", "", "same", id="both empty"),
        pytest.param("a dog on a sofa", "a cat on a sofa", "swap", id="swap"),
        pytest.param("a dog on a sofa", "a bear on the sofa", "swap", id="two swaps"),
        pytest.param("a dog on a sofa", "a zebra on a sofa", "swap", id="swap to a word of many tokens"),
        pytest.param("a plum cake", "a plumber cake", "swap", id="swap to a longer word with the same beginning"),
        pytest.param("a dog on a sofa", "a dog with a hat on a sofa", "addition", id="phrase in the middle"),
        pytest.param("hill", "hill under fog", "addition", id="phrase at the end"),
        pytest.param("", "a dog", "addition", id="from nothing"),
        pytest.param("a dog with a hat", "a dog", "removal", id="phrase less"),
        pytest.param("a dog", "", "removal", id="to nothing"),
        pytest.param("a dog on a sofa", "a big cat on a red sofa", "mixed", id="swap and addition"),
        pytest.param("a big dog in the river", "a dog in the red river", "mixed", id="one word less and another more"),
        pytest.param("a dog", "hill river", "unrelated", id="nothing in common"),
        pytest.param("dog, cat", "river, sky", "unrelated", id="only a comma in common"),
    ],
)
def test_kind(tokenizer, old, new, kind):
    assert prompts.compare(tokenizer, old, new).kind == kind


@pytest.mark.parametrize(
    "old, new, expected",
    [
        pytest.param("a dog on a sofa", "a cat on a sofa", [1, None, 3, 4, 5], id="swap"),
        pytest.param("a dog on a sofa", "a dog with a hat on a sofa", [1, 2, None, None, None, 3, 4, 5], id="addition"),
        pytest.param("a dog with a hat on a sofa", "a dog on a sofa", [1, 2, 6, 7, 8], id="removal"),
        pytest.param("a dog", "a dog and a dog", [1, 2, None, None, None], id="repeated words: the first stays"),
        pytest.param("a dog and a cat", "a cat", [4, 5], id="neighbours stay together"),
    ],
)
def test_words_map_to_their_old_places(tokenizer, old, new, expected):
    change = prompts.compare(tokenizer, old, new)
    assert list(change.mapping[1 : 1 + len(expected)]) == expected


def test_tokens_of_a_split_word_map_one_by_one(tokenizer):
    change = prompts.compare(tokenizer, "dog zebra", "big dog zebra")
    assert list(change.mapping[2:8]) == [1, 2, 3, 4, 5, 6]


def test_specials_map_to_their_like_and_padding_to_itself(tokenizer):
    change = prompts.compare(tokenizer, "a dog", "a big dog")
    assert (change.mapping[0], change.mapping[4], change.mapping[5:]) == (0, 3, tuple(range(5, 20)))


def test_padding_where_the_old_prompt_has_words_is_new(tokenizer):
    change = prompts.compare(tokenizer, "a big dog", "a dog")
    assert (change.mapping[3], change.mapping[4], change.mapping[5]) == (4, None, 5)


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param("a dog on a sofa", "the cat with a hat on a red sofa", id="mixed"),
        pytest.param("a big red dog", "dog", id="removal"),
        pytest.param("zebra zebra", "zebra giraffe", id="split words"),
    ],
)
def test_mapped_tokens_are_equal(tokenizer, old, new):
    ids = [tokenizer(text, padding="max_length", truncation=True).input_ids for text in (old, new)]
    mapping = prompts.compare(tokenizer, old, new).mapping
    assert [ids[0][place] for place in mapping if place is not None] == [
        ids[1][place] for place, source in enumerate(mapping) if source is not None
    ]


def test_a_mapping_never_turns_back(tokenizer):
    places = [
        p for p in prompts.compare(tokenizer, "a dog a cat a bear", "a bear a cat a dog").mapping if p is not None
    ]
    assert places == sorted(set(places))


def test_spans_say_what_took_the_place_of_what(tokenizer):
    change = prompts.compare(tokenizer, "a dog on a sofa", "a big cat on a red sofa")
    assert change.spans == ((2, 3, 2, 4), (5, 5, 6, 7))


@pytest.mark.parametrize(
    "old, new, expected",
    [
        pytest.param("a dog", "a cat", {2: (2,)}, id="token for token"),
        pytest.param("a dog", "a big cat", {2: (2,), 3: (2,)}, id="one token for two"),
        pytest.param("a big red dog", "a cat", {2: (2, 3, 4)}, id="three tokens for one"),
        pytest.param("a dog", "a dog with a hat", {}, id="an addition takes nobody's place"),
    ],
)
def test_exchanged_words_stand_for_the_old_ones(tokenizer, old, new, expected):
    assert prompts.compare(tokenizer, old, new).swapped() == expected


# -- weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights, expected",
    [
        pytest.param({"red": 2}, [1, 1, 2, 1, 1, 1], id="one word"),
        pytest.param({"a": 0.5}, [1, 0.5, 1, 1, 0.5, 1], id="each occurrence"),
        pytest.param({"red hat": -1}, [1, 1, -1, -1, 1, 1], id="a phrase"),
        pytest.param({"RED": 0}, [1, 1, 0, 1, 1, 1], id="any case"),
    ],
)
def test_weights_fall_on_their_tokens(tokenizer, weights, expected):
    made = prompts.token_weights(tokenizer, "a red hat a dog", weights)
    assert (list(made[:6]), set(made[6:])) == (expected, {1.0})


def test_all_tokens_of_a_split_word_are_weighted(tokenizer):
    assert prompts.token_weights(tokenizer, "a zebra", {"zebra": 3})[:8] == (1, 1, 3, 3, 3, 3, 3, 1)


@pytest.mark.parametrize(
    "old, new, weights, kind",
    [
        pytest.param("a dog", "a dog", {"dog": 2}, "reweight", id="same text"),
        pytest.param("a dog", "a dog", {"dog": 1}, "same", id="weights of 1"),
        pytest.param("a dog", "a cat", {"cat": 2}, "swap", id="with a swap"),
    ],
)
def test_weights_decide_the_kind_where_the_text_is_the_same(tokenizer, old, new, weights, kind):
    assert prompts.compare(tokenizer, old, new, weights).kind == kind


# -- outcomes ------------------------------------------------------------------------------------------------------------


def test_prompts_without_a_change_say_so(tokenizer):
    assert prompts.compare(tokenizer, "a dog", "a dog").note == "the prompt did not change: there is nothing to edit"


def test_prompts_with_nothing_in_common_say_so(tokenizer):
    assert prompts.compare(tokenizer, "a dog", "river").note.startswith("the prompts share no word")


def test_an_ordinary_change_needs_no_word(tokenizer):
    assert prompts.compare(tokenizer, "a dog", "a cat").note is None


LONG = " ".join(["dog"] * 18)


def test_what_is_not_read_is_quoted(tokenizer):
    change = prompts.compare(tokenizer, LONG, f"cat {LONG} river sky")
    assert (change.truncated, change.note) == (
        True,
        "the text encoder reads 18 tokens of the prompt, not 'dog river sky'",
    )


def test_a_full_prompt_is_not_truncated(tokenizer):
    assert not prompts.compare(tokenizer, LONG, LONG.replace("dog", "cat", 1)).truncated


def test_a_mapping_has_the_length_that_the_encoder_reads(tokenizer):
    assert [len(prompts.compare(tokenizer, LONG, new).mapping) for new in ("dog", f"cat {LONG}", "")] == [20, 20, 20]


def test_a_word_cut_in_two_maps_as_far_as_it_is_read():
    change = prompts.compare(make_tokenizer(7), "dog zebra", "cat zebra")
    assert change.mapping == (0, None, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "call, message",
    [
        pytest.param(
            lambda t: prompts.compare(t, f"{LONG} river", f"{LONG} sky"),
            "^the prompts differ only after token 18, which the text encoder does not read: shorten them",
            id="change that is not read",
        ),
        pytest.param(lambda t: prompts.compare(t, "a", ["b"]), "^a prompt is list: compare two strings", id="list"),
        pytest.param(lambda t: prompts.compare(t, None, "a"), "^a prompt is NoneType", id="none"),
        pytest.param(
            lambda t: prompts.compare(t, "a dog", "a dog", {"cat": 2}),
            "^'cat' has a weight but is not among the words that are read of the prompt 'a dog'$",
            id="weight of a word that is not there",
        ),
        pytest.param(
            lambda t: prompts.token_weights(t, f"{LONG} river", {"river": 2}),
            "^'river' has a weight",
            id="unread weight",
        ),
        pytest.param(
            lambda t: prompts.token_weights(t, "a dog", {"": 2}), "^'' has a weight", id="weight of an empty phrase"
        ),
        pytest.param(
            lambda t: prompts.token_weights(t, "a dog", {"dog": float("nan")}),
            "^the weight of 'dog' is nan: give a finite number",
            id="nan",
        ),
        pytest.param(
            lambda t: prompts.token_weights(t, "a dog", {"dog": "2"}),
            "^the weight of 'dog' is '2'",
            id="weight as text",
        ),
    ],
)
def test_what_cannot_be_edited_is_named(tokenizer, call, message):
    with pytest.raises(PromptError, match=message):
        call(tokenizer)


def test_an_empty_tokenizer_is_named():
    from transformers import CLIPTokenizer

    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], model_max_length=77)
    with pytest.raises(PromptError, match="^the tokenizer has 2 tokens in all, so every prompt reads the same"):
        prompts.compare(empty, "a dog", "a cat")


def test_a_tokenizer_that_marks_beginnings_of_words_is_read_too(monkeypatch):
    """As T5's does: no token at the start, one at the end, words begin with a mark."""

    class Marked:
        pieces = ["\u2581a", "\u2581do", "g", "t", "\u2581ca", "</s>", "<pad>"]
        all_special_ids, bos_token_id, model_max_length = [5, 6], None, 8

        def __len__(self):
            return 100

        def __call__(self, text, add_special_tokens=True, **options):
            table = {"a": [0], "dog": [1, 2], "dot": [1, 3], "cat": [4, 3]}
            ids = [number for word in text.split() for number in table[word]] + [5] * add_special_tokens
            return type("Encoded", (), {"input_ids": ids})

        def num_special_tokens_to_add(self):
            return 1

        def convert_ids_to_tokens(self, ids):
            return [self.pieces[number] for number in ids]

        def decode(self, ids):
            return "".join(self.pieces[number] for number in ids)

    assert prompts.compare(Marked(), "a dog cat", "a dot cat").mapping == (0, None, None, 3, 4, 5, 6, 7)
