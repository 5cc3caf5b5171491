"""The reward "choice", case by case. The scores are worked out by hand; the last column says how."""

import pytest
from reward_helpers import respond, say

from rewards import REWARDS, Unscorable

LIST = {"choices": ["red", "blue", "dark green"]}
DICT = {"options": {"A": "red", "B": "blue", "C": "dark green"}}
PLACES = {"choices": ["Downhill", "Uphill", "4 CD", "Eric"]}
TEN = {"options": {letter: f"{i} cm" for i, letter in enumerate("ABCDEFGHIJ", start=1)}}
MANY = {"options": {f"{i}": f"shape {i}" for i in range(1, 41)}}
SWAPPED = {"A": "B", "B": "A"}  # which letter is painted first?
NUMBERS = {"options": {"A": "5", "B": "5.5", "C": "1/2", "D": "0.25"}}
TWINS = {"options": {"A": "0.5", "B": "1/2", "C": "2"}}
MARKS = {"options": {"A": "~5", "B": "12 cm", "C": "13", "D": "red"}}
PICTURES = {"options": {"A": "", "B": "", "C": "none of them"}}

CASES = [  # answer, gold, meta, score, why
    ("B", "B", {}, 1, "a letter"),
    ("b", "B", {}, 1, "case does not matter"),
    ("(B)", "B", {}, 1, "brackets"),
    ("B.", "B", {}, 1, "full stop"),
    ("B:", "B", {}, 1, "colon"),
    ("\uff22", "B", {}, 1, "full-width"),
    (r"\text{B}", "B", {}, 1, "set as text"),
    (r"$\mathrm{B}$", "B", {}, 1, "in math marks"),
    (r"\textbf{(B)}", "B", {}, 1, "as textbooks set it"),
    ("J", "J", {}, 1, "a tenth option"),
    ("A", "B", {}, 0, "another letter"),
    ("AB", "B", {}, 0, "two letters"),
    ("A, B", "B", {}, 0, "a list"),
    ("A B C D", "B", {}, 0, "all of them"),
    ("B or C", "B", {}, 0, "not settled"),
    ("(A) (B)", "B", {}, 0, "two in brackets"),
    ("not B", "B", {}, 0, "the opposite"),
    ("Option B", "B", {}, 1, "the word option before the label"),
    ("A big blue one", "A", {}, 0, "the article"),
    ("I", "B", {}, 0, "the pronoun"),
    ("B because", "B", {}, 0, "a sentence"),
    ("\u0412", "B", {}, 0, "a Cyrillic letter"),
    ("2", "B", {}, 0, "a position"),
    ("Z", "B", {}, 0, "the letter of a refusal"),
    ("B. blue", "B", {}, 0, "a text that nothing says is the option's"),
    # texts
    ("blue", "B", LIST, 1, "text instead of letter"),
    ("BLUE", "B", LIST, 1, "case of a text"),
    ("dark\n  green", "C", LIST, 1, "white space of a text"),
    (r"\text{blue}", "B", LIST, 1, "text in LaTeX"),
    ("B. blue", "B", LIST, 1, "letter and text agree"),
    ("(b) Blue", "B", LIST, 1, "in brackets too"),
    ("B:blue", "B", LIST, 1, "a colon without a blank, as MathVerse has it"),
    ("B:red", "B", LIST, 0, "letter and text disagree"),
    ("B:blue", "B", {}, 0, "a text that nothing says is the option's"),
    ("B)blue", "B", LIST, 1, "any mark behind a letter will do without: it can be no number, and the text must agree"),
    ("B)blue", "B", {}, 0, "a text that nothing says is the option's"),
    ("1:5", "1", {"options": {"1": "5", "2": "4"}}, 0, "a ratio"),
    ("1.5", "1", {"options": {"1": "5", "2": "4"}}, 0, "a number"),
    ("3.14", "3", {"options": {"3": "14", "4": "1"}}, 0, "a number"),
    ("1.5", "B", {"options": {"A": "5", "B": "1.5"}}, 1, "a number that is an option"),
    ("B.12 cm", "B", MARKS, 1, "a full stop without a blank"),
    ("B)12 cm", "B", MARKS, 1, "a bracket"),
    ("b:12 CM", "B", MARKS, 1, "a colon"),
    ("D.red", "D", MARKS, 1, "a word"),
    ("C.13", "C", MARKS, 1, "a number"),
    ("B\uff0e12 cm", "B", MARKS, 1, "a full-width stop"),
    ("B\u300112 cm", "B", MARKS, 1, "a Chinese comma"),
    ("B\u3001 12 cm", "B", MARKS, 1, "and a blank"),
    ("B\u300212 cm", "B", MARKS, 1, "a Chinese full stop"),
    ("B\uff1a12 cm", "B", MARKS, 1, "a full-width colon"),
    ("(B)\u300112 cm", "B", MARKS, 1, "behind brackets"),
    (r"D.\ red", "D", MARKS, 1, "a blank of LaTeX"),
    (r"D.\; \text{red}", "D", MARKS, 1, "a blank of LaTeX and a text"),
    (r"$\textbf{(D)}~\text{red}$", "D", MARKS, 1, "a tie"),
    (r"D.~\text{red}", "D", MARKS, 1, "a tie behind a mark"),
    ("A:~5", "A", MARKS, 1, "which may be a part of the text"),
    (r"\mathrm{B}.12\text{ cm}", "B", MARKS, 1, "how a text is set does not matter"),
    ("B.13", "B", MARKS, 0, "another option's text"),
    ("B.13", "C", MARKS, 0, "nor is it that option"),
    ("B\u300113", "B", MARKS, 0, "another option's text"),
    ("B.12", "B", MARKS, 0, "a part of the text"),
    ("B.12 cm C.13", "B", MARKS, 0, "two options"),
    ("B,12 cm", "B", MARKS, 0, "a list"),
    ("B.C", "B", MARKS, 0, "two letters"),
    ("E.red", "D", MARKS, 0, "no such option"),
    (r"\textbf{(B) }blue", "B", LIST, 1, "letter set apart"),
    ("(B)blue", "B", LIST, 1, "brackets need no blank behind them"),
    ("(B)red", "B", LIST, 0, "nor agree with another text"),
    ("(B)blue", "B", {}, 0, "a text that nothing says is the option's"),
    ("(B): blue", "B", LIST, 1, "brackets and a colon"),
    ("B (blue)", "B", LIST, 1, "the text in brackets"),
    ("B - blue", "B", LIST, 1, "behind a dash"),
    ("B \u2013 blue", "B", LIST, 1, "behind a longer one"),
    ("**B** blue", "B", LIST, 1, "behind a letter in bold"),
    ("B (red)", "B", LIST, 0, "letter and text disagree"),
    ("B - red", "B", LIST, 0, "letter and text disagree"),
    ("B (or A)", "B", LIST, 0, "not settled"),
    ("B (blue) or A (red)", "B", LIST, 0, "two options"),
    ("B (blue)", "B", {}, 0, "a text that nothing says is the option's"),
    ("1 (5)", "1", {"options": {"1": "5", "2": "4"}}, 0, "no letter"),
    (r"\( \text{B} \) blue", "B", LIST, 1, "a letter in math marks of its own"),
    ("$B$: blue", "B", LIST, 1, "with a colon"),
    (r"\(B\) red", "B", LIST, 0, "letter and text disagree"),
    (r"\(B\) \(C\)", "B", LIST, 0, "two letters in math marks"),
    (r"$B$ blue", "B", {}, 0, "a text that nothing says is the option's"),
    ("B. red", "B", LIST, 0, "letter and text disagree"),
    ("A. blue", "B", LIST, 0, "the other way round"),
    ("blue", "blue", LIST, 1, "the gold is a text"),
    ("B", "blue", LIST, 1, "letter for a gold that is a text"),
    ("green", "C", LIST, 0, "part of a text"),
    ("dark green or blue", "C", LIST, 0, "two texts"),
    ("red blue dark green", "B", LIST, 0, "all texts"),
    ("D", "B", LIST, 0, "there is no fourth option"),
    ("None", "B", LIST, 0, "no option"),
    ("blue", "B", DICT, 1, "the same with labels"),
    ("B. blue", "B", DICT, 1, "label and text"),
    ("B. red", "B", DICT, 0, "label and text disagree"),
    ("D", "B", DICT, 0, "no such label"),
    # golds with letters in them
    ("D", "Downhill", PLACES, 0, "the gold is no letter"),
    ("A", "Downhill", PLACES, 1, "its letter"),
    ("Down", "Downhill", PLACES, 0, "a part of it"),
    ("C", "4 CD", PLACES, 1, "its letter"),
    ("D", "4 CD", PLACES, 0, "a letter in it"),
    ("E", "Eric", PLACES, 0, "a letter in it"),
    ("Eric", "D", PLACES, 1, "the text of option D"),
    # texts that look like letters
    ("A", "A", {"choices": list(SWAPPED.values())}, 1, "choices: text first, on both sides"),
    ("B", "A", {"choices": list(SWAPPED.values())}, 0, "choices: B is the first option, A the gold is the second"),
    ("A", "A", {"options": SWAPPED}, 1, "options: label first, on both sides"),
    ("B", "A", {"options": SWAPPED}, 0, "options: B is the label of the second"),
    ("A. B", "A", {"options": SWAPPED}, 1, "label with its text"),
    ("A (B)", "A", {"options": SWAPPED}, 0, "two labels"),
    ("A B", "A", {"options": SWAPPED}, 0, "two labels"),
    # many options
    ("J", "J", TEN, 1, "ten options"),
    ("10 cm", "J", TEN, 1, "the tenth by its text"),
    ("1 cm", "J", TEN, 0, "the first one's text is a part of the tenth's"),
    ("10", "J", TEN, 0, "the text without its unit"),
    ("K", "J", TEN, 0, "no eleventh"),
    ("17", "17", MANY, 1, "forty options with numbers as labels"),
    ("(17)", "17", MANY, 1, "label in brackets"),
    ("shape 17", "17", MANY, 1, "its text"),
    ("1", "17", MANY, 0, "a part of the label"),
    # numbers as texts
    ("5", "A", NUMBERS, 1, "text"),
    ("5.0", "A", NUMBERS, 1, "the value of one option"),
    ("5.50", "B", NUMBERS, 1, "the value of one option"),
    ("0.5", "C", NUMBERS, 1, "one half"),
    ("1/4", "D", NUMBERS, 1, "a quarter"),
    (r"\frac{1}{2}", "C", NUMBERS, 1, "in LaTeX"),
    ("5", "B", NUMBERS, 0, "5 is not 5.5, though a part of it"),
    ("0.50", "A", TWINS, 0, "the value of two options"),
    ("0.50", "B", TWINS, 0, "for both of them"),
    ("0.5", "A", TWINS, 1, "the exact text of one"),
    ("1/2", "A", TWINS, 0, "the exact text of the other"),
    ("2.0", "C", TWINS, 1, "unambiguous beside them"),
    # options without text
    ("B", "B", PICTURES, 1, "pictures have labels only"),
    ("None of them", "C", PICTURES, 1, "a text beside pictures"),
]


@pytest.mark.parametrize(("answer", "gold", "meta", "expected", "why"), CASES)
def test_choice(answer, gold, meta, expected, why):
    out = REWARDS["choice"](respond(say(answer), gold, **meta))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)


@pytest.mark.parametrize("meta", [LIST, DICT, PLACES, TEN, MANY, NUMBERS, TWINS])
def test_every_option_is_named_by_its_text_and_by_no_other(meta):
    texts = list(meta["options"].values()) if "options" in meta else meta["choices"]
    for gold in texts:
        for answer in texts:
            assert REWARDS["choice"](respond(say(answer), gold, **meta)).score == (answer == gold), (answer, gold)


SEVERAL = [  # answer, gold, meta, score, why
    ("A, C", "A, C", {}, 1, "the same set"),
    ("C, A", "A, C", {}, 1, "any order"),
    ("A and C", "A, C", {}, 1, "joined by a word"),
    ("(a); (c)", "A, C", {}, 1, "brackets"),
    ("AC", "A, C", {}, 1, "letters in a row"),
    ("A, A, C", "A, C", {}, 1, "a set"),
    ("A", "A, C", {}, 0, "one too few"),
    ("A, B, C", "A, C", {}, 0, "one too many"),
    ("A, B, C, D", "A, C", {}, 0, "all of them"),
    ("A or C", "A, C", {}, 0, "not settled"),
    ("A, C are right", "A, C", {}, 0, "a sentence"),
    ("A, 3", "A, C", {}, 0, "a digit is no letter"),
    ("B", "B", {}, 1, "one right option"),
    ("B, B", "B", {}, 1, "a set of one"),
    ("A, B", "B", {}, 0, "hedging"),
    ("", "B", {}, 0, "nothing"),
    (", ;", "B", {}, 0, "separators alone"),
    ("BLUE", "B", LIST, 1, "a text, though its letters are labels"),
    ("A, C", "A, C", DICT, 1, "labels that are known"),
    ("A, D", "A, D", {"options": {"A": "1", "D": "2"}}, 1, "labels with a gap"),
    ("A, E", "A, C", DICT, 0, "no such label"),
    ("A.C", "A, C", DICT, 0, "a full stop parts no labels"),
    ("A\u3001C", "A, C", DICT, 0, "nor does a Chinese comma"),
    ("B.blue", "B", DICT, 1, "one option with its text"),
    ("A.red, B.blue", "A, B", DICT, 1, "two of them"),
    ("A.red, B.red", "A, B", DICT, 0, "letter and text disagree"),
    (", ".join("A" * 400), "A", {}, 0, "longer than any list"),
]


@pytest.mark.parametrize(("answer", "gold", "meta", "expected", "why"), SEVERAL)
def test_several_right_options(answer, gold, meta, expected, why):
    assert REWARDS["choice"](respond(say(answer), gold, several=True, **meta)).score == expected, why


def test_options_that_are_as_good_as_each_other():
    meta = {"options": {"A": "9", "B": "12", "C": "18", "D": ""}, "same": {"D": "C"}}

    def score(answer, gold="C", **changed):
        return REWARDS["choice"](respond(say(answer), gold, **(meta | changed))).score

    assert [score(answer) for answer in ("C", "D", "(d)", "18", "D. 18", "C. 18")] == [1] * 6
    assert [score(answer) for answer in ("A", "B. 18", "D. 12", "C, D", "C or D", "E")] == [0] * 6
    assert score("D", "D") == score("C", "D") == 1 and score("D", "A") == 0
    for same in ({"D": "E"}, {"E": "C"}, {"D": "D"}, {"D": "C", "C": "A"}, ["D"], {"D": 3}):
        with pytest.raises(Unscorable, match="same"):
            score("C", same=same)
    with pytest.raises(Unscorable, match="several"):
        score("C", several=True)


def test_several_must_be_a_truth_value_and_the_gold_a_set_of_options():
    for gold, meta in [("A, C", {"several": 1}), ("A, Z", {"several": True, **DICT}), ("A, C", {})]:
        with pytest.raises(Unscorable):
            REWARDS["choice"](respond(say("A"), gold, **meta))
