"""Benchmarks of mathematics with pictures: rows as problems, and responses with scores that were worked out by hand."""

from pathlib import Path

import pytest
from benchmark_helpers import box, centre, check, item, opened, said
from benchmark_sets import WORDS

from sapo_vl.benchmarks import BENCHMARKS


def test_mathvision(tmp_path: Path) -> None:
    cases = [
        ("mathvision-1", box("7"), 1, "the gold"),
        ("mathvision-1", "The answer is 7.", 0, "no final answer in the form that was asked for"),
        ("mathvision-1", "so it is \\boxed{7", 0, "cut off"),
        ("mathvision-1", "<think>\\boxed{7}", 0, "cut off while thinking"),
        ("mathvision-1", box("7.004"), 0, "kits round to two decimals"),
        ("mathvision-1", box("len('sevenof')"), 0, "kits evaluate it as Python"),
        ("mathvision-2", box("C"), 1, "letter"),
        ("mathvision-2", box("6 cm"), 1, "the option's value"),
        ("mathvision-2", box("C. 6 cm"), 1, "both"),
        ("mathvision-2", box("12 cm"), 0, "another option's value"),
        ("mathvision-2", box("2 cm, 4 cm, 6 cm, 8 cm, 12 cm"), 0, "all options"),
        ("mathvision-2", "\\boxed{A} \\boxed{C}", 1, "the last box"),
        ("mathvision-2", "\\boxed{C} \\boxed{A}", 0, "the last box"),
        ("mathvision-3", box("D"), 1, "options in the picture"),
        ("mathvision-3", box("(d)"), 1, "brackets, lower case"),
        ("mathvision-3", box("4"), 0, "a place is no letter"),
        ("mathvision-4", box("0.75"), 1, "3/4"),
        ("mathvision-4", box("\\frac{6}{8}"), 1, "3/4"),
        ("mathvision-4", box("75\\%"), 1, "75/100"),
        ("mathvision-4", box("4/3"), 0, "upside down"),
        ("mathvision-5", box("\\sqrt{12}"), 1, "4 * 3 = 12"),
        ("mathvision-5", box("3.46"), 0, "two decimals of 3.4641..."),
        ("mathvision-6", box("B"), 1, "the gold is option B's value"),
        ("mathvision-6", box("10"), 1, "the value"),
        ("mathvision-6", box("10.0"), 1, "the value as a number"),
        ("mathvision-6", box("A"), 0, "1 is a part of 10"),
        ("mathvision-8", box("B"), 1, "two other options are the same"),
        ("mathvision-8", box("3"), 0, "which of the two?"),
        ("mathvision-8", box("4"), 1, "its value"),
    ]
    found = check("mathvision", tmp_path, cases)
    assert found.left_out == ["no gold"] and not found.bad
    first = found.problems["mathvision-1"]
    assert said(first).startswith("How many dots are there? [image]") and centre(first) == WORDS["red"]
    assert first.meta["groups"] == {"subject": "counting", "level": "1"}
    assert said(found.problems["mathvision-2"]).startswith("[image] How long is the side?\nA. 2 cm\nB. 4 cm\nC. 6 cm")
    assert "A." not in said(found.problems["mathvision-3"]), "letters that are drawn in the picture"
    assert said(found.problems["mathvision-4"]).startswith("[image] What share"), "no marker: the picture is first"
    assert said(found.problems["mathvision-6"]).count("[image]") == 1, "one picture, two markers"
    assert opened("mathvision_testmini", tmp_path).problems.keys() == found.problems.keys()


def test_mathvista(tmp_path: Path) -> None:
    cases = [
        ("mathvista-1", box("B"), 1, "the options are C, B, A: the text B has the letter B"),
        ("mathvista-1", box("A"), 0, "the letter of C"),
        ("mathvista-2", box("B"), 1, "the gold is a text, the answer its letter"),
        ("mathvista-2", box("45 degrees"), 1, "the text"),
        ("mathvista-2", box("45"), 0, "not the text"),
        ("mathvista-2", box("A, B, C"), 0, "all"),
        ("mathvista-2", "None", 0, "kits compare the text None"),
        ("mathvista-3", box("14"), 1, "integer"),
        ("mathvista-3", box("14.0"), 1, "the same number"),
        ("mathvista-3", box("14.4"), 0, "kits cut off the decimals"),
        ("mathvista-3", box("fourteen"), 0, "digits were asked for"),
        ("mathvista-4", box("1.24"), 1, "1.2 to one decimal"),
        ("mathvista-4", box("1.25"), 0, "1.3 to one decimal"),
        ("mathvista-4", box("1.2 cm"), 1, "with its unit"),
        ("mathvista-4", box("1.2 m"), 0, "another unit"),
        ("mathvista-5", box("0.214"), 1, "0.21 to two decimals"),
        ("mathvista-5", box("0.2"), 0, "0.20"),
        ("mathvista-6", box("[0, 2, 0, 1]"), 1, "the list"),
        ("mathvista-6", box("0, 2, 0, 1"), 1, "without brackets"),
        ("mathvista-6", box("[0, 0, 2, 1]"), 0, "in another order"),
        ("mathvista-6", box("[0, 2, 0]"), 0, "one too few"),
        ("mathvista-7", box("25%"), 1, "with its unit"),
        ("mathvista-7", box("25"), 1, "without"),
        ("mathvista-7", box("0.25"), 0, "a share is not what was asked for"),
        ("mathvista-9", box("C"), 1, "one of two options with the text of the gold"),
        ("mathvista-9", box("D"), 1, "the other one"),
        ("mathvista-9", box("18"), 1, "their text"),
        ("mathvista-9", box("D. 18"), 1, "both"),
        ("mathvista-9", box("B"), 0, "another"),
        ("mathvista-9", box("C, D"), 0, "a list"),
    ]
    found = check("mathvista", tmp_path, cases)
    assert found.left_out == ["no gold"]
    assert ["is the text of none" in found.bad[0], "precision is None" in found.bad[1]] == [True, True]
    problem = found.problems["mathvista-4"]
    assert said(problem).startswith("[image] Hint: Please answer the question.")
    assert problem.meta["groups"]["answer_type"] == "float" and problem.meta["groups"]["context"] == "plot"


def test_mathverse(tmp_path: Path) -> None:
    cases = [
        ("mathverse-0", box("B"), 1, "letter"),
        ("mathverse-0", box("B:40°"), 1, "both, as the question writes them"),
        ("mathverse-0", box("40°"), 1, "the option's text"),
        ("mathverse-0", box("40"), 0, "not the text"),
        ("mathverse-0", box("30°"), 0, "another option"),
        ("mathverse-1", box("40°"), 1, "options that the question does not show"),
        ("mathverse-1", box("C"), 0, "another letter"),
        ("mathverse-2", box("20/3"), 1, "the same fraction"),
        ("mathverse-2", box("6\\frac{2}{3}"), 1, "18/3 + 2/3"),
        ("mathverse-2", box("6.67"), 0, "an approximation"),
        ("mathverse-3", box("2"), 1, "the unit left out"),
        ("mathverse-3", box("2 \\text{ cm}"), 1, "with the unit"),
        ("mathverse-3", box("2 m"), 0, "another unit"),
        ("mathverse-4", box("y = 1 + 2x"), 1, "terms exchanged"),
        ("mathverse-4", box("2x + 1 = y"), 1, "sides exchanged"),
        ("mathverse-4", box("y=2x-1"), 0, "another line"),
        ("mathverse-5", box("D"), 1, "options that are drawn"),
        ("mathverse-5", box("D:"), 1, "with its colon"),
        ("mathverse-5", "Answer: D\nI hope this helps", 1, "a line before the last"),
    ]
    found = check("mathverse", tmp_path, cases)
    assert found.left_out == ["no gold"] and found.bad == [
        "question_type is 'open', neither 'multi-choice' nor 'free-form'"
    ]
    only = found.problems["mathverse-1"]
    assert only.meta["groups"] == {"version": "Vision Only", "type": "multi-choice"}
    assert "40" not in said(only) and "B:40°" in said(found.problems["mathverse-0"])


def test_geometry3k(tmp_path: Path) -> None:
    id = "geometry3k-test-"
    cases = [
        (id + "0", box("28.3"), 1, "the gold"),
        (id + "0", box("28.30"), 1, "a zero more"),
        (id + "0", box("28.3^\\circ"), 1, "a unit that the gold leaves out"),
        (id + "0", box("28.28"), 0, "not rounded as the gold"),
        (id + "0", "x = 28.3", 0, "no box"),
        (id + "1", box("2\\sqrt{221}"), 1, "without blanks"),
        (id + "1", box("\\sqrt{884}"), 1, "4 * 221 = 884"),
        (id + "1", box("y = 2\\sqrt{221}"), 1, "named"),
        (id + "1", box("2\\sqrt{212}"), 0, "another root"),
        (id + "2", box("0.75"), 1, "3/4"),
        (id + "2", box("3:4"), 1, "a ratio of 3 to 4"),
        (id + "2", box("4:3"), 0, "the other way round"),
        (id + "2", "<think>\\boxed{0.75}</think>", 0, "an answer in the thinking alone"),
    ]
    found = check("geometry3k", tmp_path, cases)
    two = found.problems[id + "2"]
    assert said(two).startswith("In [image] and [image] , find the ratio.")
    assert [centre(two, 0), centre(two, 1)] == [WORDS["red"], WORDS["blue"]]
    assert found.left_out == ["no gold"] and len(found.bad) == 1


def test_dynamath(tmp_path: Path) -> None:
    cases = [
        ("dynamath-7-1", box("0.5"), 1, "half of 1"),
        ("dynamath-7-1", box("1/2"), 1, "as a fraction"),
        ("dynamath-7-1", box("0.501"), 1, "within 0.001"),
        ("dynamath-7-1", box("0.502"), 0, "beyond it"),
        ("dynamath-7-1", '{"solution": "half", "short answer": "0.5"}', 0, "JSON was not asked for"),
        ("dynamath-8-10", box("B"), 1, "letter"),
        ("dynamath-8-10", box("(B) no"), 1, "as the question writes it"),
        ("dynamath-8-10", box("no"), 1, "its text"),
        ("dynamath-8-10", box("(B) yes"), 0, "the other text"),
        ("dynamath-8-10", box("yes"), 0, "the other text"),
        ("dynamath-8-10", box("A or B"), 0, "not settled"),
        ("dynamath-9-11", box("Even"), 1, "text"),
        ("dynamath-9-11", box("uneven"), 0, "kits take what has the gold in it"),
        ("dynamath-9-11", box("even or odd"), 0, "kits take what has the gold in it"),
        ("dynamath-10-12", box("\\frac{4}{3}"), 1, "1.3333 is within 0.001 of 1.333"),
        ("dynamath-10-12", box("1.33"), 0, "0.003 off"),
        ("dynamath-12-14", box("(5, -2)"), 1, "coordinates without the zeros"),
        ("dynamath-12-14", box("(5,-2)"), 1, "and without blanks"),
        ("dynamath-12-14", box("\\left(5,\\ -2\\right)"), 1, "in LaTeX"),
        ("dynamath-12-14", box("(5, 2)"), 0, "another sign"),
        ("dynamath-12-14", box("(-2, 5)"), 0, "exchanged"),
        ("dynamath-12-14", box("5"), 0, "kits take a part of the gold"),
        ("dynamath-13-15", box("(-2.7766, 1.1364)"), 1, "within 0.001 each"),
        ("dynamath-13-15", box("(-2.78, 1.14)"), 0, "0.003 off"),
        ("dynamath-14-16", box("x=0"), 1, "an equation without blanks"),
        ("dynamath-14-16", box("0"), 1, "its value"),
        ("dynamath-14-16", box("y = 0"), 0, "another line"),
        ("dynamath-15-17", box("8:00"), 1, "a time as it is written"),
        ("dynamath-15-17", box("08:00"), 1, "with two digits"),
        ("dynamath-15-17", box("8:10"), 0, "another"),
        ("dynamath-16-18", box("69,51,59"), 1, "without blanks"),
        ("dynamath-16-18", box("59, 51, 69"), 0, "in another order"),
    ]
    found = check("dynamath", tmp_path, cases)
    variants = [p for p in found.problems.values() if p.meta["variant_of"] == "7"]
    assert "three digits after the point" in said(found.problems["dynamath-12-14"])
    assert len(variants) == 10 and variants[0].meta["groups"] == {"type": "float", "subject": "algebra"}


def test_the_worst_case_of_dynamath() -> None:
    metrics = BENCHMARKS["dynamath"].metrics
    assert metrics is not None

    def question(name: str, *scores: tuple[float | None, ...]) -> list:
        return [item(f"{name}-{i}", {"variant_of": name}, *each) for i, each in enumerate(scores)]

    right, wrong, unknown = (1.0, 1.0), (0.0, 1.0), (None, 1.0)
    items = [
        *question("a", *[right] * 10),  # right in both rounds
        *question("b", *[right] * 9, wrong),  # one variant wrong in the first round
        *question("c", *[right] * 9, unknown),  # one that could not be scored there
        *question("d", *[(0.0, 0.0)] * 10),
        *question("e", *[right] * 9),  # a variant is missing
    ]
    # round 1: a of a, b, c, d; round 2: a, b and c
    assert metrics(items) == {"questions": 4, "incomplete": 1, "worst_case": pytest.approx((1 / 4 + 3 / 4) / 2)}
    assert metrics(question("e", right)) == {"questions": 0, "incomplete": 1}


def test_wemath(tmp_path: Path) -> None:
    id = "wemath-2steps_1-2steps_1"
    cases = [
        (id, box("B"), 1, "letter"),
        (id, box("3:4"), 1, "the text of option B"),
        (id, box("B. 3:4"), 1, "both"),
        (id, box("A"), 0, "another"),
        (id, box("16"), 0, "the text of option C"),
        (id, box("No correct answer"), 0, "the text of option E"),
        (id, box("F"), 0, "no such option"),
        (id, "B", 0, "no final answer"),
        (id, "<answer>B</answer>", 1, "another form that is read"),
        ("wemath-2steps_3-2steps_multi", box("C"), 1, "options on lines of their own"),
        ("wemath-2steps_3-2steps_multi", box("5"), 1, "its text"),
        ("wemath-2steps_3-2steps_multi", box("4"), 0, "the text of two options"),
    ]
    found = check("wemath", tmp_path, cases)
    assert said(found.problems[id]).startswith("[image] Step 1?\nA. 4dm²\nB. 3:4\nC. 16\nD. 20\nE. No correct answer")
    assert len(found.problems) == 3 + 3 + 4 + 4 + 1 + 3 + 1 and len(found.bad) == 3 + 3 + 1
    late = found.problems["wemath-2steps_6-2steps_1"].meta["options"]
    assert late == {"A": "Yes, around ;P.", "B": "No", "E": "No correct answer"}, "under the letter that it has"
    points, loose, blanks = (
        found.problems[f"wemath-2steps_4-2steps_{step}"].meta["options"] for step in (1, 2, "multi")
    )
    assert points == {"A": "No, it turned by 45° around point ;O.", "B": "Yes, around point ;P.", "C": "No"}
    assert loose == {"A": "45°", "B": "60°", "C": "120°", "D": "30°"} and blanks == {"A": "45°", "B": "60°", "C": "90°"}


def wemath_items(problem: str, *scores: float) -> list:
    """Scores of the steps, then of the problem."""
    count = len(scores) - 1
    keys = [f"{count}steps_{step}" for step in [*range(1, count + 1), "multi"]]
    return [item(key, {"problem": problem, "key": key}, score) for key, score in zip(keys, scores, strict=True)]


def test_the_four_kinds_of_mastery() -> None:
    metrics = BENCHMARKS["wemath"].metrics
    assert metrics is not None
    items = [
        *wemath_items("a", 1, 1, 1),  # CM both ways
        *wemath_items("b", 1, 0, 1),  # loose CM, strict RM
        *wemath_items("c", 0, 0, 1),  # RM both ways
        *wemath_items("d", 1, 1, 0),  # IG
        *wemath_items("e", 1, 0, 0),  # IK
        *wemath_items("f", 1, 1, 1, 1),  # CM both ways
        *wemath_items("g", 1, 1, 0, 1),  # loose CM, strict RM
        *wemath_items("h", 1, 1, 1, 0),  # IG
        *wemath_items("i", 0, 0, 0, 0),  # IK
        *wemath_items("j", 0, 1, 0, 0),  # IK
        *wemath_items("k", 1, 1, 1)[:2],  # the problem itself was not asked
    ]
    figures = {
        "problems": 10,
        "incomplete": 1,
        "IK": 3 / 10,
        "IG": 2 / 10,
        "CM_strict": 2 / 10,
        "RM_strict": 3 / 10,
        "CM_loose": 4 / 10,
        "RM_loose": 1 / 10,
        "strict": 3 / 10,  # 0.2 + 0.2 / 2; the paper's form: 1 - 0.5 IG - RM - IK = 1 - 0.1 - 0.3 - 0.3
        "loose": 5 / 10,  # 0.4 + 0.2 / 2; 1 - 0.1 - 0.1 - 0.3
        "rote_strict": 3 / 5,
        "rote_loose": 1 / 5,
    }
    assert metrics(items) == pytest.approx(figures)
    assert metrics([]) == {"problems": 0, "incomplete": 0}


def test_mastery_of_several_responses() -> None:
    metrics = BENCHMARKS["wemath"].metrics
    assert metrics is not None
    scores = {"2steps_1": (1.0, 1.0), "2steps_2": (1.0, None), "2steps_multi": (1.0, 1.0)}
    figures = metrics([item(key, {"problem": "a", "key": key}, *each) for key, each in scores.items()])
    # first responses: complete mastery; second: a step that could not be scored counts as wrong
    assert (figures["strict"], figures["loose"], figures["rote_strict"]) == (0.5, 1.0, 0.5)
