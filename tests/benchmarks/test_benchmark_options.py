"""Benchmarks with options and short answers: rows as problems, and responses with scores worked out by hand."""

from pathlib import Path

import pytest
from benchmark_helpers import box, centre, check, opened, said
from benchmark_sets import WORDS

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.cells import text_list

VALIDATION = "mmmu-validation_Basic_Medical_Science_"


def test_mmmu(tmp_path: Path) -> None:
    def id(number: int) -> str:
        return f"{VALIDATION}{number}"

    cases = [
        (id(1), box("B"), 1, "letter"),
        (id(1), box("a nerve"), 1, "the option's text"),
        (id(1), box("A cell"), 0, "an option's text that starts with a letter"),
        (id(1), "It shows a nerve, and not A, C or D.", 0, "no final answer: kits guess a letter"),
        (id(1), "", 0, "nothing: kits draw a letter"),
        (id(1), box("B or C"), 0, "not settled"),
        (id(2), box("A"), 1, "two pictures"),
        (id(2), box("Yes"), 1, "its text"),
        (id(3), box("A"), 1, "a picture as option"),
        (id(3), box("image 3"), 0, "pictures have letters only"),
        (id(3), box("None of them"), 0, "the other option's text"),
        (id(4), box("63020"), 1, "without separators"),
        (id(4), box("\\$63,020"), 1, "with currency"),
        (id(4), box("$63.02 thousand"), 1, "the second gold"),
        (id(4), box("63,020 to 64,000"), 0, "kits take what has the gold in it"),
        (id(5), box("1/3"), 1, "0.33 to two decimals"),
        (id(5), box("0.34"), 0, "another second decimal"),
        (id(5), box("0.33 \\text{ V}"), 1, "with a unit"),
        (id(5), box("V_0 = 0.33"), 1, "with a name"),
        (id(5), box("0.34 V"), 0, "another number with a unit"),
        (id(5), box("0.33 of 10"), 0, "no unit"),
        (id(5), box("0.333333"), 1, "0.33"),
        (id(6), box("Even circle"), 1, "text"),
        (id(6), box("uneven circle"), 0, "has the gold in it"),
        (id(13), box("0.004"), 1, "the gold"),
        (id(13), box("0.0043"), 1, "0.004 to its three decimals"),
        (id(13), box("0.001"), 0, "the same to two decimals"),
        (id(14), box("6.03 \\times 10^{-23}"), 1, "0.2% off"),
        (id(14), box("6.1e-23"), 0, "1.3% off, though all are 0 to 15 decimals"),
        (id(10), box("D"), 1, "quotes and commas in the options"),
        (id(10), box("$\\frac{1}{2}$"), 1, "the text of option D"),
        (id(10), box("it's, 5"), 0, "the text of option A"),
        (id(11), box("B"), 1, "two options are the same"),
        (id(11), box("3"), 0, "which of the two?"),
    ]
    found = check("mmmu", tmp_path, cases)
    assert found.left_out == ["no gold"] and len(found.bad) == 3
    one, two, three = (found.problems[id(number)] for number in (1, 2, 3))
    assert said(one).startswith("Question: What does [image] show?\nOptions:\nA. a cell\nB. a nerve")
    assert "Please select the correct answer from the options above." in said(one)
    assert one.meta["groups"] == {"subject": "Basic_Medical_Science", "type": "multiple-choice"}
    # in the order of the text, and the second mention of image 2 is words
    assert said(two).startswith("Question: Compare [image] with [image] . Is image 2 older?")
    assert [centre(two, 0), centre(two, 1)] == [WORDS["blue"], WORDS["red"]]
    assert "Options:\nA. [image] B. [image] C. none of them" in said(three)
    assert [centre(three, n) for n in range(3)] == [WORDS["red"], WORDS["green"], WORDS["blue"]]
    both = found.problems[id(15)]
    assert said(both).startswith("[image] Question: What is in [image] ?"), "what nothing refers to is first"
    assert [centre(both, 0), centre(both, 1)] == [WORDS["red"], WORDS["blue"]]
    unreferred = found.problems[id(4)]
    assert said(unreferred).startswith("[image] Question: What is the cost") and centre(unreferred) == WORDS["red"]


def test_mmmu_pro(tmp_path: Path) -> None:
    one, two = "mmmu_pro-test_Art_1", "mmmu_pro-test_Art_2"
    cases = [
        (one, "Thinking.\nAnswer: J", 1, "the tenth of ten"),
        (one, "Answer: (J)", 1, "brackets"),
        (one, "Answer: J.", 1, "full stop"),
        (one, "Answer: 10 cm", 1, "its text"),
        (one, "Answer: 1 cm", 0, "a part of its text"),
        (one, "Answer: I", 0, "the ninth"),
        (one, "Answer: K", 0, "there is no eleventh"),
        (one, "**Answer: J**", 1, "the line in bold"),
        (one, "Answer: A, Answer: B, Answer: J", 1, "the last of them is the answer"),
        (one, "Answer: J, Answer: A, Answer: B", 0, "and no other"),
        (one, "**Answer: A** **Answer: J**", 1, "two in bold"),
        (one, "Answer: J\nI am sure.", 1, "a line before the last"),
        (one, "Answer: J\n1\n2\n3\n4\n5", 0, "far above the end"),
        (one, "\\[\n\\text{Answer: J}\n\\]", 1, "set by LaTeX"),
        (one, "The closest choice is J. Answer: J", 1, "words before it"),
        (one, "Answer: (J)10 cm", 1, "label and text"),
        (one, "Answer: \\( \\text{J} \\) 10 cm", 1, "a label in math marks and the text"),
        (one, "Answer: \\( \\text{J} \\) 1 cm", 0, "another text"),
        (one, box("J"), 1, "a box is read too"),
        (two, "Answer: A", 1, "options I, J, K: A is the letter of I"),
        (two, "Answer: I", 1, "no letter of an option, but the text of A"),
        (two, "Answer: J", 0, "the text of B"),
    ]
    found = check("mmmu_pro_standard", tmp_path, cases)
    assert "J. 10 cm" in said(found.problems[one]) and "How long is [image] ?" in said(found.problems[one])
    pictures = found.problems[two]
    assert said(pictures).startswith("[image] [image] Question: Which?"), "pictures that nothing refers to are first"
    assert [centre(pictures, 0), centre(pictures, 1)] == [WORDS["red"], WORDS["blue"]]
    assert pictures.meta["groups"] == {"subject": "Art"}


def test_mmmu_pro_with_four_options_and_in_pictures(tmp_path: Path) -> None:
    id = "mmmu_pro-test_Art_1"
    four = [
        ("Answer: D", 1), ("Answer: 4 cm", 1), ("Answer: E", 0), ("Answer: d", 1), ("D", 0), ("Answer: A, D", 0),
        ("Answer: (D)", 1), (box("D"), 1), ("Answer: D. 4 cm", 1), ("Answer: D. 3 cm", 0), ("Answer: 4", 0),
        ("Answer: D\nOr is it C?", 1),
    ]  # fmt: skip
    ten = [
        ("Answer: J", 1), ("Answer: 10 cm", 1), ("Answer: D", 0), ("Answer: 10", 0), ("Answer:", 0), ("J", 0),
        ("Answer: J. 10 cm", 1), ("Answer: J. 1 cm", 0), ("Answer: I or J", 0), ("Answer: A\nAnswer: J", 1),
        ("Answer: J\nAnswer: A", 0), ("<think>Answer: J</think>", 0),
    ]  # fmt: skip
    check("mmmu_pro_standard4", tmp_path, [(id, text, score, "") for text, score in four])
    nested = opened("mmmu_pro_standard4", tmp_path).problems["mmmu_pro-test_Art_2"]
    assert nested.meta["options"] == {"A": "A", "B": "B", "C": "Nobody can tell"}, "a list in a list"
    vision = check("mmmu_pro_vision", tmp_path, [(id, text, score, "") for text, score in ten])
    assert said(vision.problems[id]).startswith("[image]") and "cm" not in said(vision.problems[id])
    assert len(vision.bad) == 1


def test_logicvista(tmp_path: Path) -> None:
    one, two, listed, single = (f"logicvista-{number}" for number in (0, 1, 4, 5))
    cases = [
        (one, box("B"), 1, "letter"),
        (one, box("(b)"), 1, "brackets, lower case"),
        (one, box("A, B"), 0, "one too many"),
        (one, box("A, B, C, D"), 0, "all"),
        (one, "The answer is B.", 0, "no final answer"),
        (two, box("A, C"), 1, "both"),
        (two, box("C and A"), 1, "any order"),
        (two, box("AC"), 1, "in a row"),
        (two, box("A"), 0, "one of two"),
        (two, box("A, B, C"), 0, "one too many"),
        (two, "\\boxed{A}, \\boxed{C}", 0, "two boxes are not one answer"),
        (two, box("A, C because"), 0, "a sentence"),
        (listed, box("A, C"), 1, "both letters"),
        (listed, box("A. red, C. green"), 0, "several texts are not read"),
        (listed, box("red"), 0, "one of two"),
        (single, box("B. blue"), 1, "letter and text"),
        (single, box("blue"), 1, "the text"),
        (single, box("B. red"), 0, "another text"),
        (single, box("A, B"), 0, "one too many"),
    ]
    found = check("logicvista", tmp_path, cases)
    assert found.left_out == ["no gold"] and found.bad == ["answer is '3 and 4', not letters of options"]
    assert found.problems[two].meta["groups"] == {"skill": "spatial, mechanical"}


def test_realworldqa(tmp_path: Path) -> None:
    cases = [
        ("realworldqa-0", box("B"), 1, "letter"),
        ("realworldqa-0", box("The van"), 1, "text"),
        ("realworldqa-0", box("A tie"), 0, "the text of option C, not the letter A"),
        ("realworldqa-0", box("B. The car"), 0, "letter and text disagree"),
        ("realworldqa-1", box("yes"), 1, "case"),
        ("realworldqa-1", box("Yes and no"), 0, "both"),
        ("realworldqa-1", "Yes", 0, "no final answer"),
        ("realworldqa-2", box("3"), 1, "count"),
        ("realworldqa-2", box("Three"), 1, "in words"),
        ("realworldqa-2", box("13"), 0, "the gold is a part of it"),
        ("realworldqa-3", box("C"), 1, "options that the question does not list"),
        ("realworldqa-3", box("ABC"), 0, "all"),
    ]
    found = check("realworldqa", tmp_path, cases)
    assert found.left_out == ["no gold"]
    assert [p.meta["groups"]["type"] for p in found.problems.values()] == ["choice", "word", "count", "choice", "word"]
    first, second, *_, last = map(said, found.problems.values())
    assert "directly" not in first and "C. A tie \nThink step by step" in first
    assert second.startswith("[image] Is the light red? \nThink step by step")
    assert "Please answer directly what the sign says. Is it red?" in last, "only what closes the question"


def test_chartqa(tmp_path: Path) -> None:
    cases = [
        ("chartqa-0", box("105"), 1, "5% off"),
        ("chartqa-0", box("105.1"), 0, "more than 5% off"),
        ("chartqa-0", "100", 0, "no final answer"),
        ("chartqa-1", box("0.0"), 1, "0: kits compare it as text"),
        ("chartqa-1", box("0.04"), 0, "5% of 0 is 0"),
        ("chartqa-2", box("5"), 1, "the sign left out"),
        ("chartqa-2", box("0.05"), 1, "the value of 5%"),
        ("chartqa-2", box("50%"), 0, "ten times as much"),
        ("chartqa-3", box("brazil"), 1, "case"),
        ("chartqa-3", box("Brazil, Chile"), 0, "two"),
        ("chartqa-4", box("1250"), 1, "no separator"),
        ("chartqa-4", box("1.25"), 0, "a separator is no point"),
    ]
    found = check("chartqa", tmp_path, cases)
    assert found.left_out == ["no gold"]
    kinds = [p.meta["groups"]["type"] for p in found.problems.values()]
    assert kinds == ["human", "augmented", "human", "augmented", "human"]


def test_countbench(tmp_path: Path) -> None:
    cases = [
        ("countbench-0", box("1"), 1, "digits"),
        ("countbench-0", box("one"), 1, "word"),
        ("countbench-0", box("10"), 0, "kits take what has the gold in it"),
        ("countbench-0", box("1 or 10"), 0, "not settled"),
        ("countbench-0", box("1 disc"), 0, "more than the number"),
        ("countbench-1", box("10"), 1, "digits"),
        ("countbench-1", box("Ten"), 1, "word"),
        ("countbench-1", box("10.0"), 1, "the same number"),
        ("countbench-1", box("\uff11\uff10"), 1, "full-width digits"),
        ("countbench-1", box("1"), 0, "a part of the gold"),
        ("countbench-1", box("about 10"), 0, "not settled"),
        ("countbench-1", "10", 0, "no final answer"),
    ]
    assert check("countbench", tmp_path, cases).left_out == ["no gold"]


def test_zerobench(tmp_path: Path) -> None:
    def id(number: int) -> str:
        return f"zerobench-{number}"

    cases = [
        (id(1), box("12.5"), 1, "the value of 12.50"),
        (id(1), box("12.50"), 1, "as text"),
        (id(1), box("12.500001"), 0, "no tolerance"),
        (id(1), box("112.50"), 0, "has the gold in it"),
        (id(2), box("ev2p7"), 1, "case"),
        (id(2), box("EV2P77"), 0, "has the gold in it"),
        (id(2), "{EV2P7}", 0, "braces without the box"),
        (id(3), box("10:45"), 1, "text"),
        (id(3), box("10.75"), 0, "a number for a text"),
        (id(4), box("1"), 1, "number"),
        (id(4), box("10"), 0, "has the gold in it"),
        (id(4), box("1, 2, 3"), 0, "a list"),
    ]
    found = check("zerobench", tmp_path, cases)
    assert found.bad == ["question_images_decoded is empty"]
    two = found.problems[id(2)]
    assert said(two).startswith("[image] [image]") and [centre(two, n) for n in (0, 1)] == [WORDS["red"], WORDS["blue"]]
    assert opened("zerobench_subquestions", tmp_path).problems.keys() == found.problems.keys()


def test_refcoco(tmp_path: Path) -> None:
    """The gold is 100..300 by 50..150 pixels of 400 by 200: 250 to 750 thousandths both ways."""
    one, other, dot = "refcoco_testA-0-0", "refcoco_testA-0-1", "refcoco_testA-1-0"

    def shown(*numbers: float) -> str:
        return f'```json\n[{{"bbox_2d": {list(numbers)}, "label": "disc"}}]\n```'

    cases = [
        (one, shown(250, 250, 750, 750), 1, "the box"),
        (one, '{"bbox_2d": [250, 250, 750, 750]}', 1, "without a fence"),
        (one, "\\boxed{[250, 250, 750, 750]}", 1, "in a box"),
        (one, shown(250, 250, 750, 500), 1, "the upper half: IoU 0.5"),
        (one, shown(250, 250, 750, 499), 0, "less than half"),
        (one, shown(100, 50, 300, 150), 0, "pixels: 40..120 by 10..30 of them do not meet the gold"),
        (one, shown(250, 250, 500, 500), 0, "width and height for corners: a quarter of the gold"),
        (one, shown(0, 0, 1000, 1000), 0, "the whole picture: the gold is a quarter of it"),
        (one, shown(750, 750, 250, 250), 0, "corners swapped"),
        (one, f"[{shown(250, 250, 750, 750)}, {shown(0, 0, 9, 9)}]", 0, "a fence that does not stand alone"),
        (one, '[{"bbox_2d": [250, 250, 750, 750]}, {"bbox_2d": [0, 0, 9, 9]}]', 0, "two boxes"),
        (one, "250 250 750 750", 0, "numbers without a form"),
        (other, shown(250, 250, 750, 750), 1, "another expression for the same region"),
        (dot, shown(0, 0, 10, 10), 1, "4 by 2 pixels"),
        (dot, shown(0, 0, 5, 9), 0, "2 by 1.8 pixels: 3.6 of 8"),
    ]
    found = check("refcoco_testA", tmp_path, cases)
    assert 'expression refers to: "left thing"' in said(found.problems[other]) and len(found.bad) == 2
    assert [p.split("-")[0] for p in opened("refcocog_test", tmp_path).problems] == ["refcocog_test"] * 3


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA. one\nB. two", {"A": "one", "B": "two"}),
        ("Which?\n(A) one\n(B) two", {"A": "one", "B": "two"}),
        ("Which?\nChoices:\nA:\nB:2", {"A": "", "B": "2"}),
        ("A: I see\nB: so\nWhich?\nA. one\nB. two\nC. three", {"A": "one", "B": "two", "C": "three"}),
        ("A. Smith asks", {}),
        ("B. two\nC. three", {}),
        # one behind the other
        ("Is it even? Choices: (A) yes (B) no", {"A": "yes", "B": "no"}),
        ("Where? A. Left. B. Right. C. Neither", {"A": "Left.", "B": "Right.", "C": "Neither"}),
        ("Options: A: a dog, B: a cat, black, C: none", {"A": "a dog", "B": "a cat, black", "C": "none"}),
        ("Which?\n(A) 1 (B) 2\n(C) 3 (D) 4", {"A": "1", "B": "2", "C": "3", "D": "4"}),
        ("Find x (A) 10 (B) 12 (C) $\\frac{1}{2}$", {"A": "10", "B": "12", "C": "$\\frac{1}{2}$"}),
        ("It is ( ) A.10 B.12", {"A": "10", "B": "12"}),
        ("\u89d2\uff08 \uff09A\uff0e30\u00b0B\uff0e40\u00b0", {"A": "30\u00b0", "B": "40\u00b0"}),
        ("Which? A\u3001red B\u3001blue", {"A": "red", "B": "blue"}),
        ("Does A. Smith (A) win? Choices: (A) yes (B) no", {"A": "yes", "B": "no"}),
        ("Why? A. It is so. Or not. B. It was. Now not.", {"A": "It is so. Or not.", "B": "It was. Now not."}),
        # in doubt
        ("A. Smith gives B. Jones 3 apples. Find how many are left.", {}),
        ("Two men met. A. Smith was one and B. Jones the other.", {}),
        ("Two men met. A. Smith and B. Jones", {}),
        ("Two men met. A. Smith was one. B. Jones was not. Who was it?", {}),
        ("Both are wet. A: I swim. B: So do I. Who lies?", {}),
        ("Compare. (A) and (B) are similar.", {}),
        ("Is (A) larger than (B)", {}),
        ("In the triangle (A) (B)", {}),
        ("In the triangle: (A) (B) (C)", {}),
        ("Let P(A) = 0.3 and P(B) = 0.4", {}),
        ("Divide it. The ratio is A:B = 3:4", {}),
        ("Which? (A) 1 (C) 3", {}),
        ("Which? (A) 1 (B) 2 (D) 4", {}),
        ("Who? (A) A. Smith (B) B. Jones", {}),
        ("Which? (A) yes B. no", {}),
        ("Which? A. yes B. no\nThink twice.", {}),
        ("Which? A. yes B. no. Answer with the letter.", {}),
        ("Which? $\\textbf{(A)}\\ 5 \\qquad \\textbf{(B)}\\ 7$", {}),
    ],
)
def test_options_in_a_question(question: str, options: dict[str, str]) -> None:
    assert options_in(question) == options


def test_texts_that_can_name_no_option() -> None:
    options = {"A": "<image 1>", "B": "red", "C": "Red", "D": "a <image>", "E": "blue"}
    assert option_meta(options) == {"A": "", "B": "", "C": "", "D": "", "E": "blue"}


def test_stored_lists() -> None:
    assert text_list("['a', \"b's\", 3]", "options") == ["a", "b's", "3"]
    assert text_list("[['a', 'b']]", "options") == ["a", "b"]
    assert text_list("[]", "options") == text_list(None, "options") == []
    for bad in (
        "open('x')",
        "['a'",
        "{'a'}",
        "'a'",
        "[" * 500,
        "['" + "a" * 20_001 + "']",
        "[['a'], ['b']]",
        "[[['a']]]",
        3,
    ):
        with pytest.raises(ValueError, match="options"):
            text_list(bad, "options")
