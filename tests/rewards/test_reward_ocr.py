"""The reward `ocr` by hand, and its edit distance against the textbook table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import say, score

from rewards import Unscorable
from rewards.answers.extract import bare
from rewards.ocr import edit_distance


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("hello", "hello", 1),
        ("HELLO", "hello", 1),
        ("  hello \n world", "hello world", 1),
        ("\uff28ello", "hello", 1),
        ("hallo", "hello", 4 / 5),  # substituted
        ("helo", "hello", 4 / 5),  # deleted
        ("heello", "hello", 5 / 6),  # inserted: the longer text counts
        ("kitten", "sitting", 1 - 3 / 7),
        ("ab", "abcd", 0),  # a distance of exactly half the length is too much
        ("abc", "abcd", 3 / 4),
        ("abcdxxx", "abcd", 1 - 3 / 7),
        ("abcdxxxx", "abcd", 0),
        ("dcba", "abcd", 0),
        ("12.50", "12.60", 4 / 5),
        ("12 50", "12.50", 4 / 5),
        ("the total is 12.50", "12.50", 0),
        ("12.50 12.60 12.70", "12.50", 0),  # listing candidates
        ("", "a", 0),
        ("b", "a", 0),
        ("a", "a", 1),
        ("stra\u00dfe", "STRASSE", 1),
        ("\u6771\u4eac\u90fd", "\u6771\u4eac\u5e9c", 2 / 3),
    ],
)
def test_anls_by_hand(answer, gold, expected):
    assert score("ocr", say(answer), gold) == pytest.approx(expected)


def test_the_best_of_several_golds_counts():
    assert score("ocr", say("hallo"), "goodbye", answers=["hello", "hi"]) == 4 / 5
    assert score("ocr", say("hallo"), "", answers=["hello", "hi"]) == 4 / 5
    assert score("ocr", say("goodbye"), "goodbye", answers=["hello"]) == 1


def test_case_can_be_made_to_count():
    assert score("ocr", say("Hello"), "hello", case=True) == 4 / 5
    assert score("ocr", say("hello"), "hello", case=True) == 1


@pytest.mark.parametrize(
    ("gold", "meta"),
    [
        ("", {}),
        (" ", {}),
        ("", {"answers": []}),
        ("a", {"answers": [""]}),
        ("a", {"answers": "b"}),
        ("a", {"answers": [3]}),
        ("a", {"case": "no"}),
        ("a" * 20_001, {}),
    ],
)
def test_a_gold_without_text_is_unscorable(gold, meta):
    with pytest.raises(Unscorable):
        score("ocr", say("a"), gold, **meta)


@pytest.mark.timeout(100)
def test_long_texts_do_not_hang():
    # The textbook table of the last pair has 6e8 entries, that of the first 2e10.
    assert score("ocr", say("a" * 1_000_000), "b" * 20_000) == 0
    assert score("ocr", say("ab" * 15_000), "ba" * 10_000) == pytest.approx(20_000 / 30_000, abs=0.01)


def table(a: str, b: str) -> int:
    """Levenshtein distance by the recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@given(st.text("abc", max_size=14), st.text("abc", max_size=14), st.integers(0, 16))
def test_edit_distance(a, b, limit):
    expected = table(a, b)
    assert edit_distance(a, b, 99) == expected
    assert (edit_distance(a, b, limit) > limit) == (expected > limit)
    if expected <= limit:
        assert edit_distance(a, b, limit) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text(max_size=200))
def test_scores_are_zero_or_above_one_half(gold, text):
    try:
        value = score("ocr", say(text), gold)
    except Unscorable:
        assert not bare(gold)
    else:
        assert value == 0 or 0.5 < value <= 1
