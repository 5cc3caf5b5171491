"""The published rules of the benchmarks of 2024 to 2026: verdicts worked out by hand from their scripts."""

import pytest
from official_helpers import lettered, says
from reward_helpers import respond

from rewards.official import OFFICIAL
from rewards.official.choices import UNREAD
from rewards.official.letters import RANDOM
from rewards.official.short_answers import UNKNOWN


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("\\boxed{B}", "B", True),
        ("b, as it is green", "B", True),
        ("(b) green", "B", True),
        ("Option B", "B", True),
        ("The answer is B", "B", True),
        ("because it is green", "B", True),  # the first character is all it looks at
        ("the answer is (B)", "B", False),
        ("My answer is B", "B", False),
        ("( B", "B", False),
        ("", "B", False),
    ],
)
def test_mmstar(text: str, gold: str, right: bool) -> None:
    assert says("mmstar", text, gold) == right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A first, so Answer: \\boxed{C}", "C"),
        ("\\boxed{A}, no, \\boxed{$D$}", "D"),
        ("It is \\boxed{\\text{B}}.", "B"),
        ("It is \\boxed{ B}.", "B"),
        ("It is \\boxed{(B)}.", ""),  # three characters
        ("It is \\boxed{E}.", ""),
        ("It is \\boxed{AB}.", ""),
        ("\\boxed{A} or, as they say, \\boxed{none}", ""),  # the last box
        ("so it must be B.", "B"),
        ("so it must be (B).", "B"),
        ("so it must be B", ""),
        ("B\nbecause of the lines", "B"),
        ("(B) B\nbecause of the lines", "B"),
        ("Final answer: b. That is all", "B"),
        ("the answer is option c\nand so on", "C"),
        ("the answer should be d", "D"),
        ("I think the answer is the third", ""),
        ("B", "B"),
    ],
)
def test_visulogic(text: str, letter: str) -> None:
    outs = [OFFICIAL["official_visulogic"](respond(text, gold)) for gold in "ABCD"]
    assert [out.score for out in outs] == [float(gold == letter) for gold in "ABCD"]
    assert {out.reason == UNREAD for out in outs} == {letter == ""}, "where the authors ask a model, it is said"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: (B)", "B"),
        ("I see (A).\nAnswer: c", "C"),
        ("Answer: A, no: Answer: D", "D"),
        ("\\boxed{B}", "B"),
        ("\\boxed{(b)}", "B"),
        ("Answer A is wrong, (B) is right", "B"),
        ("(A) or (E)", "A"),  # there is no E
        ("it could be B) or C)", "C"),
        ("we get {D}", "D"),
        ("we get $D$", "D"),
        ("I take D. Really", "D"),
        ("D !", "D"),  # very short
        ("I take D", "random"),
        ("a pear lies beside the apple", "A"),  # the text that stands last
        ("a Pear", "random"),
        ("I say answer:pear, not apple", "B"),
        ("Nothing to be seen", "random"),
    ],
)
def test_visualpuzzles(text: str, letter: str) -> None:
    assert lettered("neulab_visualpuzzles", text) == letter


def test_visualpuzzles_in_the_picture() -> None:
    """The reader gives such options their letter for a text: it is not looked for."""
    options = {letter: letter for letter in "ABCD"}
    out = OFFICIAL["official_neulab_visualpuzzles"](respond("the Dog and the Axe", "A", options=options))
    assert out.reason == RANDOM


@pytest.mark.parametrize(
    ("text", "right"),
    [("\\boxed{D}", 1), ("d.", 1), ("Answer: D", 1), ("(D)", 0), ("D, the left one", 0), ("It is D", 0)],
)
def test_erqa(text: str, right: float) -> None:
    assert says("erqa", text, "D") == right


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("\\boxed{yes}", "yes"),
        ("Yes, it is.", "yes"),
        ("\\boxed{No, the right bar}", "no"),
        ("yes and no", ""),
        ("yes/no", ""),
        ("It is (yes).", "yes"),
        ("eyes", ""),
        ("it is,no", "no"),  # no blank beside the comma: it becomes one
        ("it is,no, 5", ""),  # a blank beside one of them: all are taken out
        ("it is-yes of 1,000", ""),  # so they are with a number that has a comma
        ("\\boxed{**yes**}", "yes"),
        ("*yes*", ""),  # a star is no sign to it
        ("I cannot tell", ""),
    ],
)
def test_hallusionbench(text: str, word: str) -> None:
    outs = [OFFICIAL["official_hallusionbench"](respond(text, gold)) for gold in ("yes", "no")]
    assert [out.score for out in outs] == [word == "yes", word == "no"]
    assert {out.reason for out in outs} == {"" if word else UNKNOWN}


MOVES = {"A": "<image_1>", "B": "Turn left", "C": "12"}


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("b", "B", True),
        ("B. as it turns", "B", True),
        ("B) as it turns", "B", False),
        ("A is wrong, so \\boxed{B}", "B", True),
        ("\\boxed{C} or \\boxed{\\text{turn left}}", "B", True),
        ("\\boxed{(B)}", "B", False),
        ("\\boxed{12.004}", "C", True),  # the value of its text
        ("\\boxed{x} is open: \\boxed{B", "B", False),
        ("The correct answer is B. And so on", "B", True),
        ("The correct answer is\nB", "B", True),
        ("answer: B\nand more", "B", True),
        ("I take B", "B", False),
    ],
)
def test_emma_by_options(text: str, gold: str, right: bool) -> None:
    assert says("emma", text, gold, options=MOVES) == right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("3", "3", True),
        ("three red dots", "3", True),
        ("twenty-one", "21", True),
        ("two hundred and five", "205", True),
        ("three thousand", "3000", True),
        ("two point five", "7", False),
        ("6.328", "6.333", True),
        ("6.32", "6.333", False),
        ("\\frac{2}{\\sqrt{2}}", "\\sqrt{2}", True),
        ("Benzene", "benzene", True),
        ("2 x", "2x", False),  # neither is a number, and the texts differ
        ("", "0", False),
    ],
)
def test_emma_without_options(answer: str, gold: str, right: bool) -> None:
    assert says("emma", f"It is \\boxed{{{answer}}}.", gold) == right
