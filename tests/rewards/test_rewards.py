"""The value of each reward by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import COLOURS, respond, say, score

from rewards import REWARDS, RewardOutput
from rewards.number import parse_number
from rewards.weighted import weighted

# --- number


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1,234", "1234"),
        ("1,234,567.50", "1234567.5"),
        ("\u22125", "-5"),  # Unicode minus
        ("\uff14\uff12", "42"),  # full-width digits
        ("$42$", "42"),
        ("+42.", "42"),
        ("4.2e1", "42"),
        ("042", "42"),
        ("0", "0.0"),
        ("9007199254740993", "9007199254740993"),
    ],
)
def test_number_spellings(answer, gold):
    assert score("number", say(answer), gold) == 1


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("10", "1"),  # the gold is a part of the answer
        ("1", "10"),
        ("1 or 2", "1"),
        ("1 2", "1"),
        ("1, 2", "12"),
        ("1,2", "12"),
        ("12,34", "1234"),
        ("1 234", "1234"),
        ("nan", "0"),
        ("inf", "1e99"),
        ("9^9^9", "9"),
        ("9**9**9", "9"),
        ("1e999999999", "1"),
        ("9" * 100_000, "9"),
        ("5%", "5"),
        ("5%", "0.05"),
        ("three", "3"),
        ("\u0663", "3"),  # an Arabic 3: look-alikes of other scripts are not converted
        ("3\u00b2", "32"),  # superscript
        ("-", "0"),
        (".", "0"),
        ("e5", "0"),
        ("9007199254740992", "9007199254740993"),  # equal as floats
        ("1.00000001", "1"),
        ("1_000", "1000"),
        ("0x10", "16"),
    ],
)
def test_number_refuses(answer, gold):
    assert score("number", say(answer), gold) == 0


def test_number_tolerance_is_absolute_and_includes_its_bound():
    assert score("number", say("2.8"), "2.5", tolerance=0.3) == 1
    assert score("number", say("2.81"), "2.5", tolerance=0.3) == 0
    assert score("number", say("1000.4"), "1000", tolerance=0.3) == 0
    assert score("number", say("2.4"), "2.5") == 0
    assert score("number", say("3.0000000009"), "3") == 1


@given(st.integers(-(10**15), 10**15))
def test_number_reads_what_python_prints(value):
    assert parse_number(str(value)) == parse_number(f"{value:,}") == value


# --- choice and word


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "B)", "B:", "blue", "BLUE", "B. blue", "(b) Blue", "\uff22"])
def test_choice_hits(answer):
    for gold in ("B", "blue"):
        assert score("choice", say(answer), gold, choices=COLOURS) == 1


def test_choice_misses():
    wrong = [
        "A",
        "D",
        "Z",
        "B or C",
        "A B C",
        "AB",
        "B, C",
        "B. red",
        "B red",
        "A blue",
        "a big blue one",
        "*",
    ]
    wrong += [
        "blue red",
        "red, blue, dark green",
        "Be",
        "not B",
        "blu",
        "\\u0412",
    ]  # a Cyrillic B
    for answer in wrong:
        assert score("choice", say(answer), "B", choices=COLOURS) == 0, answer
        assert score("choice", say(answer), "blue", choices=COLOURS) == 0, answer


def test_a_gold_with_letters_in_it_is_not_a_letter():
    places = ["Downhill", "Uphill", "4 CD", "Eric"]
    answers = ("A", "Downhill", "D", "Down")
    assert [score("choice", say(a), "Downhill", choices=places) for a in answers] == [1, 1, 0, 0]
    assert [score("choice", say(a), "4 CD", choices=places) for a in ("C", "D", "4 CD")] == [1, 0, 1]
    assert score("word", say("D"), "Downhill") == 0
    assert score("choice", say("a"), "B", choices=places) == 0


def test_the_text_of_an_option_goes_before_its_letter():
    options = ["B", "A"]  # which letter is painted first?
    assert score("choice", say("A"), "A", choices=options) == 1
    assert score("choice", say("B"), "A", choices=options) == 0


def test_word():
    assert score("word", say("dark\n GREEN"), "Dark green") == 1
    for wrong in ("green", "dark greens", "dark green or red", "darkgreen", "None"):
        assert score("word", say(wrong), "dark green") == 0
    assert score("word", say("stra\u00dfe"), "STRASSE") == 1


# --- format, overlong, repetition, weighted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>a\nb\n\nc</think>\n<answer>\nb</answer>\n", 1),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>.", 0),
        ("x <think>a</think><answer>b</answer>", 0),
        ("<think> </think><answer>b</answer>", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0),
        ("<think>a<think></think><answer>b</answer>", 0),
        ("<think>a<answer>b</think></answer>", 0),
        ("<think>a</think><answer>b", 0),
        ("</think>a<think><answer>b</answer>", 0),
        ("a</think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_format(text, expected):
    assert REWARDS["format"](respond(text)).score == expected


def test_format_when_the_question_has_opened_the_thinking():
    """think_in_prompt: a response without the tag counts as if it had it, one with it has it once."""
    for sampled, expected in (
        ("a</think><answer>1</answer>", 1.0),
        ("<think>a</think><answer>1</answer>", 1.0),
        ("a<think>b</think><answer>1</answer>", 0.0),
        ("a<answer>1</answer>", 0.0),
    ):
        assert REWARDS["format"](respond(sampled), think_in_prompt=True).score == expected, sampled
    assert REWARDS["format"](respond("a</think><answer>1</answer>")).score == 0.0


def test_format_when_the_prompt_opens_the_thinking():
    """The text of such a response begins with what the chat template wrote."""
    for sampled, expected in [
        ("a\n</think>\n\n<answer>b</answer>", 1),
        ("<think>a</think><answer>b</answer>", 0),  # opened again
        ("a</think></think><answer>b</answer>", 0),  # closed twice
        ("</think><answer>b</answer>", 0),  # nothing thought
        ("a", 0),
    ]:
        assert REWARDS["format"](respond("<think>\n" + sampled)).score == expected, sampled


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0), (60, 0), (61, -0.025), (70, -0.25), (80, -0.5), (99, -0.975), (100, -1), (101, -1), (9999, -1)],
)
def test_overlong_slope(tokens, expected):
    assert REWARDS["overlong"](respond("", tokens=(1,) * tokens), limit=100, buffer=40).score == pytest.approx(expected)


def test_overlong_defaults_to_the_sampling_limit_and_a_fifth_of_it():
    assert [REWARDS["overlong"](respond("", tokens=(1,) * n, limit=50)).score for n in (40, 45, 50)] == [
        0,
        -0.5,
        -1,
    ]
    for buffer in (0, 51):
        with pytest.raises(ValueError, match="buffer"):
            REWARDS["overlong"](respond("", limit=50), buffer=buffer)


def test_repetition_by_hand():
    # bigrams of 1 2 1 2 1: 12 21 12 21, half of them seen before
    assert REWARDS["repetition"](respond("", tokens=(1, 2, 1, 2, 1)), n=2).score == -0.5
    assert REWARDS["repetition"](respond("", tokens=tuple(range(50)))).score == 0
    assert REWARDS["repetition"](respond("", tokens=(7,) * 15)).score == -0.9  # ten 6-grams, one different
    assert REWARDS["repetition"](respond("", tokens=(7,) * 5)).score == 0
    with pytest.raises(ValueError, match="n >= 1"):
        REWARDS["repetition"](respond(""), n=0)


def test_weighted_sum_and_parts():
    terms = {"accuracy": lambda x: RewardOutput(1.0, {"iou": 0.7}), "overlong": lambda x: RewardOutput(-0.5)}
    out = weighted(respond(""), {"accuracy": 0.9, "overlong": 0.2}, terms)
    assert out.score == pytest.approx(0.8) and out.reason == ""
    assert out.parts == {"accuracy": 1.0, "accuracy/iou": 0.7, "overlong": -0.5}


def test_weighted_reasons():
    terms = {
        "overlong": lambda x: RewardOutput(-0.5, reason="too long"),
        "accuracy": lambda x: RewardOutput(0.0, reason="wrong"),
        "format": lambda x: RewardOutput(1.0),
    }
    out = weighted(respond(""), {"accuracy": 1.0, "overlong": 0.1, "format": 0.1}, terms)
    assert out.reason == "wrong; overlong: too long"
