"""The rewards "count" and "word", case by case. The scores are worked out by hand; the last column says how."""

import pytest
from reward_helpers import respond, say

from rewards import REWARDS
from rewards.count import WORDS

COUNTS = [  # answer, gold, score, why
    ("3", "3", 1, "the same"),
    ("three", "3", 1, "a word"),
    ("Three", "3", 1, "case"),
    ("3", "three", 1, "the gold is a word"),
    ("zero", "0", 1, "nothing there"),
    ("twenty", "20", 1, "a round word"),
    ("twenty-one", "21", 1, "with hyphen"),
    ("Ninety nine", "99", 1, "with blank"),
    ("twentyone", "21", 0, "no such word"),
    ("03", "3", 1, "leading zero"),
    ("3.0", "3", 1, "a column of floats"),
    ("3", "3.0", 1, "in the gold"),
    ("1,200", "1200", 1, "thousands"),
    ("12,00", "1200", 0, "groups have three digits"),
    ("$3$", "3", 1, "math marks"),
    (r"\text{three}", "3", 1, "set as text"),
    ("\uff13", "3", 1, "full-width"),
    ("10", "1", 0, "the gold is a part of the answer"),
    ("1", "10", 0, "the answer is a part of the gold"),
    ("3.5", "3", 0, "half a thing"),
    ("3.5", "4", 0, "not rounded"),
    ("-3", "3", 0, "a sign"),
    ("+3", "3", 0, "a sign"),
    ("\u22123", "3", 0, "the Unicode minus"),
    ("3 apples", "3", 0, "a unit"),
    ("three apples", "3", 0, "a unit"),
    ("3 or 4", "3", 0, "not settled"),
    ("2-4", "3", 0, "a range"),
    ("about 3", "3", 0, "not settled"),
    ("**3**", "3", 1, "markdown"),
    ("*three*.", "3", 1, "and a full stop"),
    ("3..", "3", 0, "two stops"),
    ("a dozen", "12", 0, "no number word"),
    ("none", "0", 0, "no number word"),
    ("2+1", "3", 0, "an expression"),
    ("6/2", "3", 0, "an expression"),
    ("3e0", "3", 0, "no count is written so"),
    ("iii", "3", 0, "Roman"),
    ("\u0663", "3", 0, "an Arabic digit"),
    ("nan", "0", 0, "not a number"),
    ("9" * 16, "9" * 15, 0, "more than 15 digits"),
]

WORD_CASES = [  # answer, gold, score, why
    ("dark green", "dark green", 1, "the same"),
    ("Dark GREEN", "dark green", 1, "case"),
    ("dark\n  green", "dark green", 1, "white space"),
    ("dark green", "Dark  Green", 1, "in the gold"),
    (r"\text{dark green}", "dark green", 1, "set as text"),
    ("$x$", "x", 1, "math marks"),
    ("STRASSE", "stra\u00dfe", 1, "case of every alphabet"),
    ("\uff52\uff45\uff44", "red", 1, "full-width"),
    ("D", "Downhill", 0, "a letter of it"),
    ("Down", "Downhill", 0, "a part"),
    ("Downhill", "Down", 0, "more than it"),
    ("green", "dark green", 0, "a part"),
    ("dark greens", "dark green", 0, "plural"),
    ("darkgreen", "dark green", 0, "one word for two"),
    ("green dark", "dark green", 0, "order"),
    ("dark green.", "dark green", 1, "a full stop"),
    ("dark green..", "dark green", 0, "two"),
    ("U.S.", "U.S.", 1, "the stop of an abbreviation"),
    ("**U.S.**.", "U.S.", 1, "and one behind it"),
    ("e.g.", "e.g.", 1, "another"),
    ("p.m", "p.m.", 0, "without its stop"),
    ("Inc", "Inc.", 1, "a gold with a full stop"),
    ("...", "...", 1, "signs"),
    ("dark green or red", "dark green", 0, "not settled"),
    ("red, dark green", "dark green", 0, "a list"),
    ("the dark green", "dark green", 0, "an article"),
    ("not red", "red", 0, "the opposite"),
    ("None", "red", 0, "no word at all"),
    ("None", "none", 1, "a word like any other"),
    ("r\u0435d", "red", 0, "a Cyrillic letter"),
    ("r\u200bed", "red", 0, "an invisible character"),
    ("**red**", "red", 1, "markdown"),
    ("**red** blue", "red", 0, "more than what is in bold"),
    ("red", "`red`", 1, "markdown in the gold"),
    (r"$45^\circ$", "45\u00b0", 1, "a sign set in LaTeX"),
    ("45\u00b0", r"45^{\circ}", 1, "the other way round"),
    (r"\frac{1}{2}", "1/2", 1, "a fraction"),
    (r"\frac{1}{2}", "0.5", 0, "nothing is worked out"),
    (r"50\%", "50%", 1, "an escaped sign"),
    (r"1{,}000", "1,000", 1, "thousands"),
    (r"$\alpha$ decay", "\u03b1 decay", 1, "a Greek letter"),
    ("a decay", "\u03b1 decay", 0, "a Latin one"),
    ('"red"', "red", 0, "quotes"),
    ("0", "0.0", 0, "not as a number"),
]


@pytest.mark.parametrize(("answer", "gold", "expected", "why"), COUNTS)
def test_count(answer, gold, expected, why):
    out = REWARDS["count"](respond(say(answer), gold))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)


def test_number_words():
    by_hand = {"zero": 0, "one": 1, "nine": 9, "ten": 10, "eleven": 11, "nineteen": 19, "twenty": 20, "ninety": 90}
    assert {word: WORDS[word] for word in by_hand} == by_hand
    assert set(WORDS.values()) == set(range(100))
    assert [word for word, value in WORDS.items() if value == 42] == ["forty-two", "forty two"]


@pytest.mark.parametrize(("answer", "gold", "expected", "why"), WORD_CASES)
def test_word(answer, gold, expected, why):
    out = REWARDS["word"](respond(say(answer), gold))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)
