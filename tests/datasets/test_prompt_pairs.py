"""Prompt pairs are what their kind says, and short enough for a tokenizer of single letters."""

import difflib

import pytest

from sige.datasets import prompt_pairs
from sige.datasets.edit import UnknownEdit

PAIRS = [pytest.param(prompt_pairs.load(name), id=name) for name in prompt_pairs.names()]
# kind -> the operations on words that it may consist of
OPERATIONS = {
    "swap": {"replace"},
    "addition": {"insert"},
    "removal": {"delete"},
    "reweight": set(),
    "mixed": {"replace", "insert"},
}


def operations(old, new):
    codes = difflib.SequenceMatcher(None, old.split(), new.split(), autojunk=False).get_opcodes()
    return {code for code, *_ in codes} - {"equal"}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_of_its_kind(pair):
    if pair.kind == "unrelated":
        assert not set(pair.old.split()) & set(pair.new.split())
    else:
        assert operations(pair.old, pair.new) == OPERATIONS[pair.kind]


@pytest.mark.parametrize("pair", PAIRS)
def test_weights_are_there_for_re_weighting_alone_and_of_words_of_the_prompt(pair):
    assert (bool(pair.weights), {word for word, _ in pair.weights} <= set(pair.new.split())) == (
        pair.kind == "reweight",
        True,
    )


@pytest.mark.parametrize("kind", prompt_pairs.KINDS)
def test_each_kind_has_pairs(kind):
    assert all(prompt_pairs.load(name).kind == kind for name in prompt_pairs.names(kind)) and prompt_pairs.names(kind)


def test_the_sequence_is_ten_edits():
    assert len(prompt_pairs.SEQUENCE) == 11


@pytest.mark.parametrize("number", range(10))
def test_each_edit_of_the_sequence_is_one_change(number):
    old, new = prompt_pairs.SEQUENCE[number : number + 2]
    codes = difflib.SequenceMatcher(None, old.split(), new.split(), autojunk=False).get_opcodes()
    assert len([code for code, *_ in codes if code != "equal"]) == 1


def test_all_prompts_fit_letter_by_letter():
    prompts = [
        *prompt_pairs.SEQUENCE,
        *(text for name in prompt_pairs.names() for text in (prompt_pairs.load(name).old, prompt_pairs.load(name).new)),
    ]
    assert max(len(text.replace(" ", "")) for text in prompts) <= 75


@pytest.mark.parametrize(
    "call, message",
    [
        pytest.param(
            lambda: prompt_pairs.load("zebra"), "^unknown prompt pair 'zebra'; there are dog-cat, ", id="name"
        ),
        pytest.param(
            lambda: prompt_pairs.names("swop"), "^unknown kind of prompt change 'swop'; there are swap, ", id="kind"
        ),
    ],
)
def test_an_unknown_name_lists_what_exists(call, message):
    with pytest.raises(UnknownEdit, match=message):
        call()
