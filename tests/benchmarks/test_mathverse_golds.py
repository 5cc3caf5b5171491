"""Golds of MathVerse and MathVision as they are really written: the value in them, and what is then right.

The shapes are those of the sets, the problems are not.
"""

import pytest
from PIL import Image

from rewards import REWARDS, RewardInput, Unscorable
from sapo_vl.benchmarks import BENCHMARKS, Row
from sapo_vl.benchmarks.mathverse import value_of
from sapo_vl.types import Problem

SENTENCE = "Fill the gaps.The line is 2 units away from the point (1,1)."


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        (r"Area $=36.5 \mathrm{~cm}^{2}$", r"36.5 \mathrm{~cm}^{2}"),
        (r" Perimeter $=24 \mathrm{~mm}$", r"24 \mathrm{~mm}"),
        (r"Area of sector $=8 \pi \mathrm{cm}^{2}$", r"8 \pi \mathrm{cm}^{2}"),
        (r"S.A. of prism $=12.5$", "12.5"),
        (r"Total S.A. $=12.5$", "12.5"),
        ("Volume $=52.5$ cubic units", "52.5 cubic units"),
        ("52.5 units $^{3}$", "52.5 units ^{3}"),
        ("Water used $=1.5$ Litres", "1.5 Litres"),
        ("slope =-3", "-3"),
        (r"=\frac{5}{3}", r"\frac{5}{3}"),
        ("$=(2,1)$", "(2,1)"),
        ("Center $=(2,1)$", "(2,1)"),
        (r"y=\cos x=\left(30^\circ ,1\right)", r"\left(30^\circ ,1\right)"),
        (r"$(x, y)=\left(30^{\circ}, 1\right)$", r"\left(30^{\circ}, 1\right)"),
        ("$8=t$", "t=8"),
        ("42\u63b3T", "42\u00b0T"),
        (r"{3}{7} \pi", r"\frac{3}{7} \pi"),
        ("-1.5\n-2.5", "-1.5, -2.5"),
        # these say what they say
        ("$r=7.25$", "r=7.25"),
        ("$y=x-1$", "y=x-1"),
        ("f(x)=-(x+1)^2+2", "f(x)=-(x+1)^2+2"),
        ("x^2+y^2=9", "x^2+y^2=9"),
        (r"4\sqrt{6}", r"4\sqrt{6}"),
        ("4.5 m", "4.5 m"),
        (SENTENCE, SENTENCE),
    ],
)
def test_the_value_in_a_gold_of_mathverse(gold: str, value: str):
    assert value_of(gold) == value


def problem_of(name: str, **cells: object) -> Problem:
    benchmark = BENCHMARKS[name]
    image = Image.new("RGB", (8, 8))
    row = Row(index=0, cells=dict.fromkeys(benchmark.columns, "-") | cells, image=lambda cell: image)
    [problem] = benchmark.problems(row)
    return problem


def score(problem: Problem, answer: str) -> float:
    text = f"so \\boxed{{{answer}}}"
    x = RewardInput(text=text, num_tokens=1, max_tokens=9, finish="stop", answer=problem.answer, meta=problem.meta)
    return REWARDS[problem.reward](x).score


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"Area $=36.5 \mathrm{~cm}^{2}$", ["36.5", r"36.5 \text{ cm}^2", "A = 36.5"], ["36.4", "36.5 cm", "3.65"]),
        (r"Area $=7 \pi \mathrm{cm}^{2}$", [r"7\pi", r"7\pi\ \text{cm}^2"], ["7", r"\pi"]),
        ("Volume $=52.5$ cubic units", ["52.5", r"52.5 \text{ cubic units}"], ["52", "52.5 cm"]),
        ("slope =-3", ["-3"], ["3"]),
        ("Center $=(2,1)$", ["(2, 1)"], ["(1, 2)", "2"]),
        (r"y=\cos x=\left(30^\circ ,1\right)", [r"(30^\circ, 1)", "(30, 1)"], [r"(1, 30^\circ)"]),
        ("$8=t$", ["8", "t=8"], ["9", "s=8"]),
        ("42\u63b3T", [r"42^\circ", r"42^\circ\text{T}"], [r"43^\circ", "42T"]),
        ("4.5 m", ["4.5", r"4.5\text{ m}"], ["4.5 x", "5.4 m", r"4.5\text{ cm}"]),
        ("$12km / h$", ["12", r"12\text{ km/h}"], [r"12\text{ m/s}"]),
        ("-1.5\n-2.5", ["-1.5, -2.5"], ["-4", "-1.5"]),
        (
            "domain: [-2, 0) and range: (1, 3]",
            [r"\text{Domain: } [-2, 0), \text{ Range: } (1, 3]"],
            [r"\text{Domain: } (1, 3], \text{ Range: } [-2, 0)", "[-2, 0)"],
        ),
    ],
)
def test_what_is_right_for_a_gold_of_mathverse(gold: str, right: list[str], wrong: list[str]):
    problem = problem_of("mathverse", answer=gold, question_type="free-form")
    assert [score(problem, answer) for answer in [*right, *wrong]] == [1.0] * len(right) + [0.0] * len(wrong)


def test_a_gold_of_mathverse_that_is_a_sentence_stays_unscorable():
    with pytest.raises(Unscorable, match="cannot be compared"):
        score(problem_of("mathverse", answer=SENTENCE, question_type="free-form"), "2")


def test_a_choice_of_mathverse_with_two_letters_is_a_set():
    question = "Which two?\nA:red\nB:blue\nC:green"
    problem = problem_of("mathverse", answer="B\nC", question_type="multi-choice", question_for_eval=question)
    assert "separated by commas" in str(problem.messages)
    answers = ["B, C", "C and B", "B:blue, C:green", "B:red, C:green", "B", "A, B, C", "A, C"]
    assert [score(problem, answer) for answer in answers] == [1, 1, 1, 0, 0, 0, 0]
    one = problem_of("mathverse", answer="B", question_type="multi-choice", question_for_eval=question)
    assert [score(one, answer) for answer in ("B", "B, C")] == [1, 0] and "commas" not in str(one.messages)


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("75{degrees}", ["75", r"75^\circ"], ["74"]),
        (r"5\sqrt{3}{squareinches}", [r"5\sqrt{3}", r"5\sqrt{3}\text{ in}^2"], ["5", r"5\sqrt{3}\text{ in}"]),
        (r"\frac{1}{6}\pi{inches}", [r"\frac{\pi}{6}"], [r"\frac{1}{6}"]),
        (r"$\boxed{\frac{15}{7}}$", [r"\frac{15}{7}"], ["15"]),
    ],
)
def test_what_is_right_for_a_gold_of_mathvision(gold: str, right: list[str], wrong: list[str]):
    problem = problem_of("mathvision", id="1", answer=gold, options=[], level=1)
    assert [score(problem, answer) for answer in [*right, *wrong]] == [1.0] * len(right) + [0.0] * len(wrong)
