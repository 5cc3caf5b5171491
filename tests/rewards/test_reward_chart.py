"""The reward "chart", case by case. The scores are worked out by hand; the last column says how."""

import pytest
from reward_helpers import respond, say

from rewards import REWARDS, Unscorable

EXACT = {"relative_tolerance": 0}

CASES = [  # answer, gold, meta, score, why
    ("100", "100", {}, 1, "the same"),
    ("105", "100", {}, 1, "on the bound: 5% of 100 is 5"),
    ("95", "100", {}, 1, "on the lower bound"),
    ("105.01", "100", {}, 0, "beyond it"),
    ("94.99", "100", {}, 0, "below it"),
    ("100", "105", {}, 1, "5% of the gold: 5.25"),
    ("100", "95.3", {}, 1, "4.765 allowed, 4.7 off"),
    ("100", "95.2", {}, 0, "4.76 allowed, 4.8 off; of the answer it would be 5"),
    ("-100", "100", {}, 0, "sign"),
    ("-103", "-100", {}, 1, "5% of 100 either side"),
    ("-94", "-100", {}, 0, "6 off"),
    ("0.0105", "0.01", {}, 1, "relative, so for small numbers too"),
    ("0.02", "0.01", {}, 0, "twice as much"),
    ("1e3", "1000", {}, 1, "e notation"),
    ("3/4", "0.75", {}, 1, "a fraction"),
    # zero
    ("0", "0", {}, 1, "the same"),
    ("0.0", "0", {}, 1, "as a number"),
    ("0%", "0", {}, 1, "as a number"),
    ("0", "0.00", {}, 1, "the gold with decimals"),
    ("0.001", "0", {}, 0, "5% of 0 is 0"),
    ("zero", "0", {}, 0, "text for a number"),
    # thousands
    ("1,250", "1250", {}, 1, "comma in the answer"),
    ("1250", "1,250", {}, 1, "comma in the gold"),
    ("1,300", "1,250", {}, 1, "62.5 allowed, 50 off"),
    ("1,313", "1,250", {}, 0, "63 off"),
    ("1.25", "1,250", {}, 0, "a comma is no decimal point"),
    # per cent
    ("5%", "5", {}, 1, "the sign does not matter"),
    ("5", "5%", {}, 1, "nor in the gold"),
    ("0.05", "5%", {}, 1, "the value of 5%"),
    ("5%", "0.05", {}, 1, "the same the other way round"),
    ("5.2%", "5%", {}, 1, "0.25 allowed"),
    ("5.3%", "5%", {}, 0, "0.3 off"),
    ("0.05%", "5%", {}, 0, "both have the sign, and differ by 100"),
    ("500", "5%", {}, 0, "the wrong way"),
    ("5 percent", "5", {}, 1, "in words"),
    ("50%", "5", {}, 0, "ten times as much"),
    # currency and units
    ("$5", "5", {}, 1, "currency may be added"),
    ("5", "$5", {}, 1, "or left out"),
    ("$5", "\u20ac5", {}, 0, "but not exchanged"),
    ("$5", "5%", {}, 0, "nor for per cent"),
    ("5 million", "5", {}, 0, "a word behind a number makes another number"),
    ("5 million", "5 million", {}, 1, "as text"),
    ("5.1 million", "5 million", {}, 0, "as text there is no tolerance"),
    # years
    ("1950", "2010", {}, 1, "ChartQA's rule: 60 is less than 5% of 2010"),
    ("1909", "2010", {}, 0, "101 is more than 100.5"),
    ("2009", "2010", EXACT, 0, "a data set can ask for the exact year"),
    ("2010.0", "2010", EXACT, 1, "as a number"),
    ("8", "10", {"relative_tolerance": 0.2}, 1, "a wider bound"),
    ("12.1", "10", {"relative_tolerance": 0.2}, 0, "beyond it"),
    # text
    ("Brazil", "Brazil", {}, 1, "the same"),
    ("BRAZIL", "Brazil", {}, 1, "case"),
    ("dark  blue", "Dark Blue", {}, 1, "white space"),
    (r"\text{Brazil}", "Brazil", {}, 1, "set as text"),
    ("Brasil", "Brazil", {}, 0, "one letter"),
    ("Brazil, Chile", "Brazil", {}, 0, "two"),
    ("in Brazil", "Brazil", {}, 0, "more than the text"),
    ("Brazil", "Brazil and Chile", {}, 0, "a part of the gold"),
    ("5", "Brazil", {}, 0, "a number for a text"),
    ("Brazil", "5", {}, 0, "a text for a number"),
    ("No", "Yes", {}, 0, "the other one"),
    ("None", "0", {}, 0, "no word for zero"),
    # hostile
    ("95 100 105", "100", {}, 0, "three numbers"),
    ("95-105", "100", {}, 0, "a range"),
    ("100 or 200", "100", {}, 0, "not settled"),
    ("nan", "100", {}, 0, "not a number"),
    ("inf", "100", {}, 0, "infinity"),
    ("1e999", "100", {}, 0, "too large to be read"),
    ("100/0", "100", {}, 0, "division by zero"),
]


@pytest.mark.parametrize(("answer", "gold", "meta", "expected", "why"), CASES)
def test_chart(answer, gold, meta, expected, why):
    out = REWARDS["chart"](respond(say(answer), gold, **meta))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)


TWO = {"precision": 2}
SPELLINGS = {"answers": ["colour", "0.5"], "relative_tolerance": 0}

SHORT = [  # answer, gold, meta, score, why
    ("0.333", "0.33", TWO, 1, "0.33 to two decimals"),
    ("1/3", "0.33", TWO, 1, "a fraction, rounded"),
    ("0.335", "0.33", TWO, 0, "halves away from zero: 0.34"),
    ("-0.335", "-0.34", TWO, 1, "also below zero"),
    ("34", "33", TWO, 0, "no relative tolerance"),
    ("$63,020", "63020", TWO, 1, "currency as before"),
    ("33%", "0.33", TWO, 1, "per cent as before"),
    ("color", "color", SPELLINGS, 1, "the first gold"),
    ("Colour", "color", SPELLINGS, 1, "another one"),
    ("1/2", "color", SPELLINGS, 1, "a number among texts"),
    ("0.51", "color", SPELLINGS, 0, "no gold"),
    ("color, colour", "color", SPELLINGS, 0, "both"),
    ("colou", "color", SPELLINGS, 0, "a part"),
]


@pytest.mark.parametrize(("answer", "gold", "meta", "expected", "why"), SHORT)
def test_decimals_and_several_golds(answer, gold, meta, expected, why):
    assert REWARDS["chart"](respond(say(answer), gold, **meta)).score == expected, why


UNITS = [  # answer, gold, score, why
    ("8.4", "8.4", 1, "none"),
    (r"8.4 \text{ V}", "8.4", 1, "a unit set as text"),
    ("8.4 V", "8.4", 1, "a letter"),
    ("8.4V", "8.4", 1, "without a blank"),
    ("8.4 volts", "8.4", 1, "a word"),
    (r"8.4\ \Omega", "8.4", 1, "a sign"),
    (r"8.4 k\Omega", "8.4", 1, "with a prefix"),
    (r"8.4\,\mu\text{F}", "8.4", 1, "a prefix in LaTeX"),
    (r"8.4 \text{ m/s}^2", "8.4", 1, "a quotient with a power"),
    (r"8.4\ \mathrm{N\cdot m}", "8.4", 1, "a product"),
    (r"8.4^\circ", "8.4", 1, "degrees"),
    ("8.4 cm", "8.4", 1, "centimetres"),
    ("$8.40", "8.4", 1, "currency as before"),
    ("V_0 = 8.4", "8.4", 1, "a name"),
    (r"$V_{\text{out}} = 8.4\ \text{V}$", "8.4", 1, "an index that is set as text"),
    (r"V_{out}=8.4\,\text{V}", "8.4", 1, "a name and a unit"),
    (r"\theta' = 8.4^\circ", "8.4", 1, "a Greek one"),
    ("8.5 V", "8.4", 0, "another number"),
    ("V_0 = 8.5", "8.4", 0, "another number"),
    ("84%", "8.4", 0, "another number"),
    ("8.4 of 10", "8.4", 0, "no unit"),
    ("8.4 million", "8.4", 0, "a word that counts"),
    ("8.4 dozen", "8.4", 0, "a word that counts"),
    ("8.4 k", "8.4", 0, "a prefix alone"),
    ("8.4x", "8.4", 0, "a variable"),
    ("8.4i", "8.4", 0, "imaginary"),
    (r"8.4\pi", "8.4", 0, "a factor"),
    ("8.4 or 9", "8.4", 0, "not settled"),
    ("8.4 V or A", "8.4", 0, "not settled"),
    ("x + 1 = 8.4", "8.4", 0, "no name"),
    ("V = 9 = 8.4", "8.4", 0, "two values"),
    ("9 V = 8.4", "8.4", 0, "two numbers"),
    ("1950s", "1950", 0, "a decade is no second"),
    ("8.4", "8.4 V", 1, "the gold's unit left out"),
    (r"8.4\text{V}", "8.4 V", 1, "the same unit"),
    ("8.4 A", "8.4 V", 0, "another unit"),
    ("8.5 V", "8.4 V", 0, "another number"),
    ("4", "4 apples", 1, "of a gold any word is a unit"),
    ("4 apples", "4 apples", 1, "the same"),
    ("4 pears", "4 apples", 0, "other things"),
    ("5", "5 million", 0, "but for those that count"),
    ("5 million", "5 million", 1, "as text"),
    ("1950", "1950s", 0, "a decade"),
    ("even", "even", 1, "a text"),
    ("x = even", "even", 0, "a name is for numbers"),
]


@pytest.mark.parametrize(("answer", "gold", "expected", "why"), UNITS)
def test_any_unit(answer, gold, expected, why):
    assert REWARDS["chart"](respond(say(answer), gold, any_unit=True, **TWO)).score == expected, why


def test_a_unit_makes_text_of_a_number_by_default():
    for answer in ("8.4 V", "V_0 = 8.4", r"8.4^\circ"):
        assert REWARDS["chart"](respond(say(answer), "8.4")).score == 0


@pytest.mark.parametrize(
    "meta",
    [
        {"any_unit": 1},
        {"precision": 2, "relative_tolerance": 0},
        {"precision": -1},
        {"answers": "b"},
        {"answers": [1]},
        {"answers": [""]},
    ],
)
def test_rules_that_make_no_sense(meta):
    with pytest.raises(Unscorable):
        REWARDS["chart"](respond(say("a"), "a", **meta))
