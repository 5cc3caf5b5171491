"""The published rules of benchmarks: verdicts worked out by hand from their scripts, odd ones among them."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from official_helpers import FRUIT, lettered, says
from reward_helpers import respond

from rewards import IN_PROCESS, REWARDS, Unscorable
from rewards.official import OFFICIAL, OFFICIAL_IN_PROCESS
from rewards.official.letters import _NUMBERS
from rewards.official.mathvision import find_answer, is_equal
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan
from sapo_vl.benchmarks import BENCHMARKS
from sapo_vl.scoring.scorer import Scorer, ScoringConfig, ScoringError


def test_none_is_a_reward() -> None:
    assert not OFFICIAL.keys() & REWARDS.keys() and not OFFICIAL_IN_PROCESS & IN_PROCESS
    assert {b.official for b in BENCHMARKS.values()} - {""} == OFFICIAL.keys(), "one that no benchmark names, or none"
    with pytest.raises(ScoringError, match="unknown reward 'official_mmmu'"):
        Scorer(ScoringConfig(by_task={"*": "official_mmmu"}))
    with Scorer(ScoringConfig()) as scorer, pytest.raises(ScoringError, match=r"'official_mmmu' .* does not exist"):
        scorer.check([("t", "official_mmmu")], "a set")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("**Answer: B**", "B"),
        ("So it is C.\n\\[ \\text{Answer: B} \\]", "B"),
        ("Answer: (A) apple", "A"),
        ("Answer: A\nNo, Answer: B", "B"),  # the last one
        ("Answer: B, as a pear is green. I checked.", "B"),  # "I" is no option here
        ("Answer: A or B, but (C) too", "C"),  # two letters behind it: the whole is searched, brackets first
        ("Answer: none\nIt must be (A) or (B), rather (A)", "A"),
        ("NASA took it", "A"),  # before a blank
        ("NASA took it, so B", "B"),  # both are before a blank, one is between two
        ("surely B", "B"),
        ("I take B.", "B"),
        ("it is B.x", "B"),
        ("the fruit on the table is a pear", "B"),  # by its text, in more than five words
        ("an apple, no, in fact a Dried Plum is there", "C"),
        ("a pear is there", "random"),  # five words
        ("Nothing of the kind can be seen there", "random"),
        ("<think>Answer: A</think> Answer: B", "B"),
        ("<think>Answer: A", "random"),
    ],
)
def test_mmmu_pro_by_hand(text: str, letter: str) -> None:
    assert lettered("mmmu_pro", text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("reasoning about A and B\n\\boxed{C}", "C"),
        ("\\boxed{\\text{B}}", "B"),
        ("The answer is B", "B"),
        ("A NASA picture", "A"),  # the first A stands between blanks
        ("NASA picture", "random"),  # other than in MMMU-Pro
        ("Answer: pear", "random"),  # one word: too short for the texts
        ("first (A), then (B)", "B"),
    ],
)
def test_mmmu_by_hand(text: str, letter: str) -> None:
    assert lettered("mmmu", text) == letter


def test_a_drawn_letter_stays_the_same() -> None:
    options = {letter: f"option {letter}" for letter in "ABCD"}

    def right(name: str, gold: str) -> float:
        x = dataclasses.replace(respond("?", gold, options=options), id=name)
        return OFFICIAL["official_mmmu_pro"](x).score

    drawn = ["".join(gold for gold in options if right(f"item-{i}", gold)) for i in range(200)]
    assert drawn == ["".join(gold for gold in options if right(f"item-{i}", gold)) for i in range(200)]
    assert all(len(letter) == 1 for letter in drawn), "one of the letters is right, whatever the gold"
    assert all(25 <= drawn.count(letter) <= 75 for letter in options), "each about 50 of 200 times"


@pytest.mark.parametrize(
    ("text", "golds", "right"),
    [
        ("\\boxed{6.328}", ["6.333"], True),  # 6.33 both
        ("\\boxed{6.32}", ["6.333"], False),
        ("\\boxed{1,250}", ["1250"], True),
        ("\\boxed{about 0.3 m}", ["0.3"], True),  # a number in it
        ("\\boxed{a vast Sea Shell}", ["sea shell"], True),  # the gold is in it
        ("\\boxed{shell}", ["sea shell"], False),
        ("\\boxed{ab}", ["b"], False),  # a single letter is looked for beside a blank
        ("\\boxed{a b}", ["b"], True),
        ("\\boxed{12}", ["eleven", "12"], True),
        ("It is 5.\nSo the answer is 7", ["5"], True),  # any line with "is "
        ("It has 5.\nThe answer is 7", ["5"], False),
        ("x = 5\ny = 7", ["5"], False),  # "=" counts in the last line alone
        ("x = 5\ny = 7", ["7"], True),
        ("5 and 7", ["7"], True),  # no key phrase: the whole
        ("\\boxed{1.5e3}", ["1500"], True),
    ],
)
def test_open_questions_of_mmmu(text: str, golds: list[str], right: bool) -> None:
    assert says("mmmu", text, golds[0], answers=golds[1:]) == right


@drawn(st.text(alphabet="0123456789.,-+eEab", max_size=14))
def test_numbers_are_those_of_the_scripts_expressions(text: str) -> None:
    plainly = (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
    assert [p.findall(text) for p in _NUMBERS] == [re.findall(p, text) for p in plainly]


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("<Answer>: B", "B", True),
        ("Answer: B and A", "B", True),
        ("Answer A. No: Answer: <<B>>", "B", True),
        ("Answer: (B)", "B", False),  # a bracket is no letter
        ("\\boxed{B}", "B", True),
        ("\\boxed{b}", "B", False),
        ("B is my choice", "B", True),  # no "Answer": the first character of all
        ("I think B", "B", False),
    ],
)
def test_wemath(text: str, gold: str, right: bool) -> None:
    assert says("wemath", text, gold, options={"A": "4", "B": "5"}) == right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("5%", "0.05", True),
        ("5", "5%", False),  # 5 against 0.05
        ("0", "0", True),
        ("0.0", "0", False),  # a gold of 0 is compared as text
        ("1,000", "1000", False),
        ("brazil", "Brazil", True),
        ("in Brazil", "Brazil", False),
    ],
)
def test_chartqa(answer: str, gold: str, right: bool) -> None:
    assert says("chartqa", f"Let me see.\n\\boxed{{{answer}}}", gold) == right
    assert says("chartqa", answer, gold) == right, "without a box the whole reply is the answer"


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("B", "B", True),
        ("(b).", "B", True),
        ("Two cars", "B", True),  # the text of an option; signs and case of the letter do not matter
        ("two cars", "B", False),  # but the case of a text does
        ("B. Two cars", "B", True),
        ("three", "3", True),
        ("Three.", "3", True),
        ("3 of them", "3", False),
    ],
)
def test_realworldqa(answer: str, gold: str, right: bool) -> None:
    meta = {"options": {"A": "One car", "B": "Two cars"}} if gold == "B" else {}
    assert says("realworldqa", f"\\boxed{{{answer}}}", gold, **meta) == right


def test_gold_in_the_answer() -> None:
    assert [says("countbench", text, "1") for text in ("\\boxed{10}", "\\boxed{one}", "I see 1 of 9.")] == [1, 0, 1]
    texts = ("{7} and {12.5}", "{12.50}", "\\boxed{\\text{about 12.50}}", "12.50", "{12.50\n}", "{12.50} then {}")
    assert [says("zerobench", text, "12.50") for text in texts] == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "answer", "gold", "right"),
    [
        ("float", "2.095", "2.0944", True),
        ("float", "2.096", "2.0944", False),
        ("float", "5 cm", "5.0", True),
        ("float", "2\u03c0", "6.283", True),
        ("float", "\u03c0", "3.1416", False),  # nothing stands before it
        ("float", "1/2", "0.5", False),
        ("multiple choice", "B", "B", True),
        ("multiple choice", "(B) yes", "B", True),
        ("multiple choice", "A, B", "B", False),  # the first three characters
        ("text", "(5, -2)", "(5, -2)", True),
        ("text", "uneven", "even", True),  # the gold is in the answer
        ("text", "ev", "even", False),
        ("text", "Even", "even", False),
    ],
)
def test_dynamath(kind: str, answer: str, gold: str, right: bool) -> None:
    assert says("dynamath", f"\\boxed{{{answer}}}", gold, groups={"type": kind}) == right


def test_dynamath_without_an_answer() -> None:
    """The last line less its last character."""
    meta = {"groups": {"type": "float"}}
    assert [says("dynamath", text, "5", **meta) for text in ("It is\n5.", "It is\n5", "It is 5.")] == [1, 0, 0]


CHOICES = {"A": "2", "B": "4 cm", "C": "44 cm"}


@pytest.mark.parametrize(
    ("answer", "gold", "meta", "right"),
    [
        ("B", "B", {"options": CHOICES}, True),
        ("(B) 44 cm", "B", {"options": CHOICES}, True),  # the letter in brackets
        ("4 cm", "B", {"options": CHOICES}, True),
        ("44 c", "C", {"options": CHOICES}, True),  # nearest: one letter off, "4 cm" is two
        ("no idea", "C", {"options": CHOICES}, False),
        ("", "A", {"options": CHOICES}, True),  # the shortest text is nearest to nothing
        ("D", "C", {"options": CHOICES | {"D": ""}, "same": {"D": "C"}}, True),  # two options of one text
        ("25.6", "25", {"groups": {"answer_type": "integer"}}, True),  # cut off, not rounded
        ("-0.5", "0", {"groups": {"answer_type": "integer"}}, True),
        ("25 cm", "25", {"groups": {"answer_type": "integer"}}, True),
        ("twenty", "20", {"groups": {"answer_type": "integer"}}, False),
        ("1.249", "1.2", {"groups": {"answer_type": "float"}, "precision": 1}, True),
        ("1.26", "1.2", {"groups": {"answer_type": "float"}, "precision": 1}, False),
        ("2", "2.0", {"groups": {"answer_type": "float"}, "precision": 1}, True),
        ("[0, 2]", "[0, 2]", {"groups": {"answer_type": "list"}}, True),
        ("[0,2]", "[0, 2]", {"groups": {"answer_type": "list"}}, False),
    ],
)
def test_mathvista(answer: str, gold: str, meta: dict[str, Any], right: bool) -> None:
    assert says("mathvista", f"\\boxed{{{answer}}}", gold, **meta) == right


def test_meta_that_makes_no_sense() -> None:
    with pytest.raises(Unscorable, match="precision"):
        says("mathvista", "\\boxed{1}", "1.0", groups={"answer_type": "float"})
    with pytest.raises(Unscorable, match="letters to texts"):
        says("mmmu_pro", "A", "A", options={"A": 4})
    with pytest.raises(Unscorable, match="no options"):
        says("mmmu_pro", "A", "A")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So \\boxed{60}.", "60"),
        ("First \\boxed{1}, then \\boxed{x = 2\\text{ cm}}", "2{cm}"),
        ("\\boxed{\\text{(C)}}", "c"),
        ("\\boxed{\\dfrac{3}{4}}", "\\frac{3}{4}"),
        ("\\boxed{\\frac{1}{2}} of {x}", "\\frac{1}{2}}of{x"),  # up to the last brace of all
        ("The answer is 12 km. And so on.", "12"),
        ("the final answer is: B. Done", "b"),
        ("It must be (D).", "d"),
        ("B\nbecause of that", "b"),
        ("Its area is 7.5.", "7.5"),
        ("I cannot see it", "icannotseeit"),
        ("\\boxed{45^\\circ}", "45"),
        ("\\boxed{.5}", "0.5"),
    ],
)
def test_what_mathvision_takes_for_the_answer(text: str, found: str) -> None:
    assert find_answer(text) == found


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("C", "c", True),
        ("3.14159", "\\pi", True),  # to two decimals
        ("3.13", "\\pi", False),
        ("$2\\sqrt{3}$", "3.4641", True),
        ("(1/2, 3)", "(0.5,3)", True),
        ("(1/2, 3)", "(3,0.5)", False),
        ("$8: 5$", "1.6", True),  # a ratio is a division
        ("$60^{\\circ}$", "60", False),  # degrees are unknown to its parser
        ("0.5", "\\frac12", False),  # so are fractions without braces
        ("\\frac{3}{2}", "\\frac{3}{2}}{cm", True),  # it stops at a brace that closes nothing
        ("4", "{4}", True),
        ("x", "2x", False),
        ("", "", False),
        ("1", "9^{9^{9^{9}}}", False),
        ("1", "__import__('os')", False),
    ],
)
def test_what_is_equal_to_mathvision(gold: str, answer: str, equal: bool) -> None:
    assert is_equal(gold, answer) == equal


def test_mathvision_compares_letter_and_text() -> None:
    options = {"A": "$\\frac{1}{2}$", "B": "2"}
    texts = ("\\boxed{A}", "\\boxed{0.5}", "\\boxed{B}", "The answer is (A)", "\\boxed{\\text{(A) half}}")
    assert [says("mathvision", text, "A", options=options) for text in texts] == [1, 1, 0, 1, 0]


def test_in_workers_as_by_hand() -> None:
    jobs = [Job("official_mathvision", respond(t, "$\\frac{1}{3}$")) for t in ("\\boxed{0.333}", "\\boxed{0.4}")]
    jobs.append(Job("official_chartqa", respond("\\boxed{7}", "7")))
    with RewardPool(Plan({"accuracy": 1.0}, {}, 30.0), workers=1) as pool:
        assert [result.score for result in pool.run(jobs)] == [1.0, 0.0, 1.0]


LONG = [piece * (150_000 // len(piece)) for piece in ("-", "{", "is ", "A ", "1,", "e1", "(A)")] + ["1" * 150_000 + ","]


@pytest.mark.parametrize("name", sorted(OFFICIAL_IN_PROCESS))
def test_time_grows_with_the_length_alone(name: str) -> None:
    """With its square, one of these would take longer than the limit of a test."""
    for text in LONG:
        for meta in ({"options": FRUIT}, {"groups": {"type": "float", "answer_type": "integer"}}):
            if name == "official_mmmu_pro" and "options" not in meta:
                continue
            assert OFFICIAL[name](respond(text, "B", **meta)).score in (0.0, 1.0)
