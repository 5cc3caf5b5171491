"""The reward "number", case by case. The scores are worked out by hand; the last column says how."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond, say

from rewards import REWARDS
from rewards.answers.numerals import unit_name
from rewards.base import TOO_LONG, WRONG
from rewards.number import parse_number

CM = {"unit": ["cm", "centimeters"]}

CASES = [  # answer, gold, meta, score, why
    ("42", "42", {}, 1, "the same"),
    ("42.", "42", {}, 1, "a full stop"),
    ("042", "42", {}, 1, "leading zeros do not count"),
    ("-0", "0", {}, 1, "there is one zero"),
    ("24", "42", {}, 0, "digits swapped"),
    ("4 2", "42", {}, 0, "two numbers"),
    ("10", "1", {}, 0, "the gold is a part of the answer"),
    ("1", "10", {}, 0, "the answer is a part of the gold"),
    ("-5", "5", {}, 0, "sign"),
    ("\u22125", "-5", {}, 1, "the Unicode minus"),
    ("\uff14\uff12", "42", {}, 1, "full-width digits"),
    ("\u0664\u0662", "42", {}, 0, "Arabic digits are other characters"),
    ("4\u00b2", "42", {}, 0, "a power, not a digit"),
    ("forty-two", "42", {}, 0, "number words belong to count"),
    ("x = 42", "42", {}, 0, "an equation is no number"),
    ("41 + 1", "42", {}, 0, "an expression is no number"),
    ("42 or 43", "42", {}, 0, "two answers"),
    ("about 42", "42", {}, 0, "more than the number"),
    ("$42$", "42", {}, 1, "math marks around it"),
    (r"\(42\)", "42", {}, 1, "the other math marks"),
    (r"\text{42}", "42", {}, 1, "set as text"),
    # thousands
    ("1,234", "1234", {}, 1, "comma"),
    ("12,345,678.5", "12345678.5", {}, 1, "two commas and decimals"),
    (r"1{,}234", "1234", {}, 1, "the comma of LaTeX"),
    (r"1\,234", "1234", {}, 1, "the thin space of LaTeX"),
    ("1,23", "123", {}, 0, "groups have three digits"),
    ("1234,567", "1234567", {}, 0, "the first group has at most three digits"),
    ("1.234,5", "1234.5", {}, 0, "the other convention is not guessed"),
    ("1 234", "1234", {}, 0, "a blank separates numbers"),
    # fractions
    ("3/4", "0.75", {}, 1, "a fraction"),
    ("6/8", "3/4", {}, 1, "not in lowest terms"),
    ("-3 / 4", "-0.75", {}, 1, "blanks around the slash"),
    (r"\frac{3}{4}", "3/4", {}, 1, "LaTeX"),
    (r"-\dfrac{3}{4}", "-0.75", {}, 1, "sign before it"),
    ("1 1/2", "1.5", {}, 1, "mixed number"),
    (r"1\frac{1}{2}", "1.5", {}, 1, "mixed number in LaTeX"),
    ("1 3/2", "2.5", {}, 0, "no mixed number: its fraction exceeds 1"),
    (r"\frac12", "0.5", {}, 1, "arguments without braces"),
    (r"-\dfrac34", "-0.75", {}, 1, "the same with a sign"),
    (r"\frac1{20}", "0.05", {}, 1, "one of two without braces"),
    (r"\frac{20} 2", "10", {}, 1, "the other one"),
    (r"\frac{ 1 }{ 2 }", "0.5", {}, 1, "blanks in the braces"),
    (r"\frac{-3}{4}", "-0.75", {}, 1, "a sign in the fraction"),
    (r"-\frac{3}{-4}", "0.75", {}, 1, "two signs"),
    (r"2\frac12", "2.5", {}, 1, "mixed, without braces"),
    ("\u00bd", "0.5", {}, 1, "one sign"),
    ("-\u00bc", "-0.25", {}, 1, "one sign, negative"),
    ("2\u00be", "2.75", {}, 1, "mixed, as one sign"),
    ("0.5", r"\frac12", {}, 1, "in the gold"),
    (r"\frac123", "0.5", {}, 0, "a fraction, and a digit"),
    ("\u00bd2", "0.5", {}, 0, "the same"),
    (r"\frac12 3", "1.5", {}, 0, "two numbers"),
    ("\u00bd \u00bd", "0.5", {}, 0, "two fractions"),
    (r"1\frac32", "2.5", {}, 0, "no mixed number"),
    (r"1\frac{-1}{2}", "0.5", {}, 0, "no mixed number: a sign within"),
    (r"\frac{1}{-0}", "1", {}, 0, "division by zero"),
    (r"\frac10", "1", {}, 0, "division by zero"),
    ("\u00bd cm", "0.5", {}, 0, "a unit"),
    (r"\frac12 cm", "0.5", {}, 0, "a unit"),
    (r"\frac12\text{ cm}", "0.5", CM, 1, "the unit of the rule"),
    ("3/0", "3", {}, 0, "division by zero"),
    ("1/3", "0.333333", {}, 0, "exact, so not equal"),
    ("1/3", "0.333333", {"precision": 4}, 1, "equal in four decimals"),
    ("3/4/1", "0.75", {}, 0, "two slashes"),
    # scientific
    ("4.2e1", "42", {}, 1, "e notation"),
    ("42E-1", "4.2", {}, 1, "negative exponent"),
    (r"4.2 \times 10^{1}", "42", {}, 1, "times a power of ten"),
    ("4.2 x 10^1", "42", {}, 1, "plain text of it"),
    ("4.2\u00d710^-1", "0.42", {}, 1, "the sign of multiplication"),
    ("10^3", "1000", {}, 1, "a bare power of ten"),
    ("2^10", "1024", {}, 0, "other powers are expressions"),
    ("1e100", "1e99", {}, 0, "exponents end at 99"),
    ("1e999999999", "1", {}, 0, "and are never worked out"),
    ("inf", "1e99", {}, 0, "infinity"),
    ("NaN", "0", {}, 0, "not a number"),
    ("9" * 65, "9" * 64, {}, 0, "more than 64 characters"),
    ("1_000", "1000", {}, 0, "Python's separator"),
    ("0x2A", "42", {}, 0, "hexadecimal"),
    ("9007199254740992", "9007199254740993", {}, 0, "equal as floats, not as numbers"),
    # tolerance and precision
    ("2.8", "2.5", {"tolerance": 0.3}, 1, "on the bound"),
    ("2.81", "2.5", {"tolerance": 0.3}, 0, "beyond it"),
    ("3", "2.5", {"tolerance": None}, 0, "null is not given"),
    ("3.14159", "3.14", {"precision": 2}, 1, "3.14159 rounds to 3.14"),
    ("3.145", "3.15", {"precision": 2}, 1, "halves go up"),
    ("-3.145", "-3.15", {"precision": 2}, 1, "away from zero"),
    ("3.144999", "3.15", {"precision": 2}, 0, "rounds to 3.14"),
    ("3.1", "3.14", {"precision": 2}, 0, "one decimal too few: 3.10"),
    ("1.46", "1.5", {"precision": 1}, 1, "1.46 rounds to 1.5"),
    ("2.5", "3", {"precision": 0}, 1, "to a whole number"),
    ("2.4", "3", {"precision": 0}, 0, "rounds to 2"),
    # units
    ("5 cm", "5", CM, 1, "the unit"),
    ("5", "5 cm", CM, 1, "without, where the gold has it"),
    (r"5\text{ cm}", "5", CM, 1, "in LaTeX"),
    ("5cm.", "5", CM, 1, "without blank, with full stop"),
    ("5 centimeter", "5", CM, 1, "singular of a word"),
    ("5 CM", "5", CM, 0, "case counts in short units"),
    ("50 mm", "5", CM, 0, "nothing is converted, and it is not allowed"),
    ("5 m", "5", CM, 0, "wrong unit"),
    ("5 cm^2", "5", CM, 0, "an area"),
    (r"5\text{ cm}^{2}", "5", {"unit": "cm^2"}, 1, "an area in LaTeX"),
    ("5 cm\u00b2", "5", {"unit": "cm^2"}, 1, "superscript"),
    ("5 square centimeters", "5", {"unit": "cm^2"}, 1, "in words"),
    ("5 cm", "5", {}, 0, "no unit is allowed"),
    ("$5", "5", {"unit": "$"}, 1, "currency stands in front"),
    ("5 dollars", "5", {"unit": "$"}, 1, "or behind, in words"),
    ("\u20ac5", "5", {"unit": "$"}, 0, "another currency"),
    ("-$5.50", "-5.5", {"unit": "$"}, 1, "sign before the currency"),
    ("$5 cm", "5", {"unit": ["$", "cm"]}, 0, "two units"),
    (r"30^\circ", "30", {"unit": "\u00b0"}, 1, "degrees in LaTeX"),
    ("30 degrees", "30", {"unit": "deg"}, 1, "degrees in words"),
    ("30\u00ba", "30", {"unit": "\u00b0"}, 1, "the sign of an ordinal, typed for it"),
    ("5 kg of apples", "5", {"unit": "kg"}, 0, "more than the unit"),
    # per cent
    ("20%", "20", {"percent": "points"}, 1, "20% is 20"),
    ("20%", "20", {"percent": True}, 1, "true is another word for points"),
    ("20%", "0.2", {"percent": True}, 0, "20% is 20"),
    ("20%", "20", {"percent": False}, 0, "as without the rule"),
    ("20%", "0.2", {"percent": "points"}, 0, "20% is 20"),
    ("0.2", "20%", {"percent": "points"}, 0, "the gold is 20"),
    ("20%", "0.2", {"percent": "fraction"}, 1, "20% is 0.2"),
    ("20%", "20", {"percent": "fraction"}, 0, "20% is 0.2"),
    (r"20\%", "1/5", {"percent": "fraction"}, 1, "in LaTeX, against a fraction"),
    ("20 percent", "20%", {"percent": "points"}, 1, "in words"),
    ("20%", "20", {}, 0, "without a rule"),
    ("20%%", "20", {"percent": "points"}, 0, "twice"),
    ("19.96%", "20", {"percent": "points", "precision": 1}, 1, "19.96 rounds to 20.0"),
    ("0.1996", "20%", {"percent": "fraction", "precision": 2}, 1, "0.1996 rounds to 0.20"),
]


@pytest.mark.parametrize(("answer", "gold", "meta", "expected", "why"), CASES)
def test_number(answer, gold, meta, expected, why):
    out = REWARDS["number"](respond(say(answer), gold, **meta))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)


@pytest.mark.parametrize("gold", sorted({gold for _, gold, meta, _, _ in CASES if not meta}))
def test_every_gold_of_the_table_scores_one_for_itself(gold):
    assert REWARDS["number"](respond(say(gold), gold)).score == 1


def test_reasons():
    reasons = [REWARDS["number"](respond(say(a), "5", unit="cm")).reason for a in ("6", "5 m", "five", "5" * 65)]
    assert reasons == [WRONG, "wrong unit", "not a number", TOO_LONG]


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_fractions_are_exact(top, bottom):
    spellings = [f"{top}/{bottom}", f"{'-' if top < 0 else ''}\\frac{{{abs(top)}}}{{{bottom}}}"]
    assert [parse_number(text) for text in spellings] == [Fraction(top, bottom)] * 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"\text{ cm}^{2}", "cm^2"),
        ("sq cm", "cm^2"),
        ("cubic meters", "m^3"),
        (r"^{\circ}C", "\u00b0C"),
        ("\u00b0 C", "\u00b0C"),
        ("Inches", "in"),
        ("feet", "ft"),
        ("mW", "mW"),
        ("MW", "MW"),
        ("Watts", "watt"),
        ("per cent", "%"),
        ("", ""),
    ],
)
def test_names_of_units(text, name):
    assert unit_name(text) == name
