"""Texts that LaTeX sets and plain ones: which are the same, and which must stay apart. By hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond, say

from rewards import REWARDS, Unscorable
from rewards.answers.typeset import typeset

SAME = [  # each line reads the same once it is set
    ("45\u00b0", r"45^\circ", r"45^{\circ}", r"$45^\circ$", r"45^{ \circ }", r"45\degree", "45 \u00b0"),
    ("1/2", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\frac12", "\u00bd", "1 / 2"),
    ("1 1/2", r"1\frac{1}{2}", r"1 \frac{1}{2}", "1\u00bd"),
    ("-1/2", r"-\frac{1}{2}", r"\frac{-1}{2}", "\u22121/2"),
    ("\u221a3/2", r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt 3}{2}", "sqrt(3)/2", "\u221a(3)/2"),
    ("(a+b)/2", r"\frac{a+b}{2}", r"\frac{a + b}{2}"),
    ("1/(2x)", r"\frac{1}{2x}"),
    ("2\u03c0/3", r"\frac{2\pi}{3}", r"\frac{2 \pi}{3}"),
    ("80-2\u03c0", r"80 - 2 \pi", r"80-2\pi"),
    ("x\u00b2", r"x^2", r"x^{2}", r"$x^{2}$"),
    ("x\u207b\u00b9", r"x^{-1}", "x^-1"),
    ("H\u2082O", r"\text{H}_2\text{O}", r"\mathrm{H_2O}", "H_{2}O"),
    ("50%", r"50\%", r"50\,\%", "50 %"),
    ("$5", r"\$5"),
    ("1,000", r"1{,}000", r"1\,000", r"1,\!000"),
    ("5 cm", r"5\text{ cm}", r"5\,\text{cm}", r"\text{5 cm}", r"5~\mathrm{cm}", r"5 \mathrm{~cm}", r"5 \ \mathrm{cm}"),
    ("3 \u00d7 10\u2075", r"3 \times 10^{5}", r"3\times10^5"),
    ("x \u2264 5", r"x \leq 5", "x <= 5", r"x\le5"),
    ("(1/2, 3)", r"\left( \frac{1}{2}, 3 \right)"),
    ("angle of 45\u00b0", r"angle of $45^\circ$", r"angle of \(45^\circ\)"),
    ("\u03b1 decay", r"$\alpha$ decay", r"\alpha{} decay"),
    ("\u221b2", r"\sqrt[3]{2}"),
]

APART = [
    (r"\frac{1}{2}x", "1/2x", "the fraction times x"),
    (r"\frac{1}{2x}", "1/2x", "a fraction of 2x"),
    ("x^{2y}", "x^2y", "y in the exponent"),
    (r"\sqrt{23}", r"\sqrt23", "3 beside the root"),
    ("$5 and $6", "5 and 6", "two prices"),
    (r"\$5", "5", "a price"),
    ("5%", "5", "a sign"),
    ("45\u00b0", "45", "a sign"),
    (r"2\frac{1}{2}", "21/2", "a mixed number"),
    (r"\frac{2}{4}", "1/2", "nothing is worked out"),
    ("dark green", "darkgreen", "a blank between words"),
    ("10 cm", "10cm", "a blank between letters"),
    (r"\alpha", "a", "a Greek letter"),
    (r"\int x", "x", "a command that sets no sign"),
    ("x_1", "x^1", "below and above"),
    ("-5", "5", "a sign"),
]


@pytest.mark.parametrize("line", SAME, ids=lambda line: line[0])
def test_spellings_of_one_text(line):
    assert len({typeset(text) for text in line}) == 1, [typeset(text) for text in line]
    meta = {"choices": ["red", line[0]]}
    for text in line:
        assert REWARDS["choice"](respond(say(text), "B", **meta)).score == 1, text
        assert REWARDS["choice"](respond(say(f"(B) {text}"), "B", **meta)).score == 1, text
        assert REWARDS["choice"](respond(say(f"(A) {text}"), "B", **meta)).score == 0, text
        assert REWARDS["choice"](respond(say(text), "B", choices=["red", line[-1]])).score == 1, text
        assert REWARDS["word"](respond(say(text), line[0])).score == 1, text


@pytest.mark.parametrize(("a", "b", "why"), APART)
def test_different_texts(a, b, why):
    assert typeset(a) != typeset(b), why
    assert REWARDS["word"](respond(say(a), b)).score == 0
    by_value = why == "nothing is worked out"  # a number names the option of that value
    assert REWARDS["choice"](respond(say(a), "A", choices=[b, "red"])).score == by_value


TWINS = {"options": {"A": "1/2", "B": r"\frac{1}{2}", "C": "`x`", "D": "x", "E": "No", "F": "No."}}


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("1/2", "A"),
        (r"\frac{1}{2}", "B"),
        (r"$\frac{1}{2}$", "B"),
        (r"\dfrac{1}{2}", ""),  # reads like both
        ("\u00bd", ""),
        ("`x`", "C"),
        ("x", "D"),
        ("**x**", "D"),
        ("x.", "D"),
        ("No", "E"),
        ("No.", "F"),
        ("*No*", "E"),
        ("**B.** $\\dfrac{1}{2}$", "B"),  # the label says which
        ("**A**", "A"),
        ("**(A)** 1/2", "A"),
        ("**A.** x", ""),
        ("*A*. 1/2", "A"),
        ("**A** **B**", ""),
    ],
)
def test_no_answer_names_two_options(answer, named):
    for gold in TWINS["options"]:
        assert REWARDS["choice"](respond(say(answer), gold, **TWINS)).score == (gold == named), gold


def test_a_text_that_looks_like_a_label_is_one_however_it_is_marked():
    for answer in ("B", "**B**", "B.", "`B`."):
        assert REWARDS["choice"](respond(say(answer), "B", choices=["B", "A"])).score == 1  # the gold means the first
        assert REWARDS["choice"](respond(say(answer), "B", options={"A": "B", "B": "A"})).score == 1


def test_options_that_differ_in_an_accents_spelling_only_are_no_options():
    with pytest.raises(Unscorable):
        REWARDS["choice"](respond(say("A"), "A", choices=["caf\u00e9", "cafe\u0301"]))


BITS = ["\\frac", "\\sqrt", "{", "}", "[3]", "^", "_", "\\text{", "$", "\\(", "\\)", "\\"]
BITS += ["\u221a", "\u00bd", "\u00b2", "1", "x", " "]


@given(st.one_of(st.text(), st.lists(st.sampled_from(BITS), max_size=60).map("".join)))
def test_any_text_can_be_set_and_is_itself(text):
    typeset(text)
    gold = f"x{text}"
    if "answer>" not in text and "think>" not in text:
        assert REWARDS["word"](respond(f"<answer>{gold}</answer>", gold)).score == 1
