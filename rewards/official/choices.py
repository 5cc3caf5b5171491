r"""Rules that take a letter by how it is said: MMStar, VisuLogic, VisualPuzzles, ERQA."""

from __future__ import annotations

import random
import re

from rewards.answers.extract import reply
from rewards.base import RewardInput, RewardOutput
from rewards.official.given import given, options_of
from rewards.official.letters import RANDOM

LETTERS = ("A", "B", "C", "D")
UNREAD = "no letter in a form that the script reads"

_MMSTAR = ("{}", "({}", "option {}", "the answer is {}")

_BOX_OR_BRACE = re.compile(r"\\boxed\{|[^\\]\}")
_TAKEN_OUT = ("\\text{", "\\rm{", "\\mathbf{", "$", "}")
_VISULOGIC_ENDS = (" {}.", " ({}).")
_VISULOGIC_STARTS = ("{}\n", "({})\n", "({}) {}\n")
_VISULOGIC_PHRASES = (
    "answer:", "the final answer is:", "the answer is option:", "the answer is:", "the correct answer is option:",
    "the correct answer is:", "the answer should be:", "the final answer is", "the answer is option", "the answer is",
    "the correct answer is option", "the correct answer is", "the answer should be",
)  # fmt: skip

# The first of these that any of the letters has counts; of several the last.
_VISUALPUZZLES = tuple(
    map(
        re.compile,
        (
            r"Answer:\s*\(([A-Za-z])\)",
            r"(?<!Final )Answer:\s*([A-Za-z])",
            r"Answer:\s*([A-Za-z])",
            r"\(([A-Za-z])\)",
            r"([A-Za-z])\)",
            r"\{([A-Za-z])\}",
            r"\$([A-Za-z])\$",
            r" ([A-Da-d])\.",
        ),
    )
)
_SHORT = re.compile(" ([A-Da-d])")
_SHORT_CHARS = 5  # of a response, with a blank before it, that is searched for _SHORT


def mmstar(x: RewardInput) -> RewardOutput:
    """MMStar (github.com/MMStar-Benchmark/MMStar, eval/vlmeval/evaluate/mmstar.py), on the answer if there is one.

    It begins with the gold letter, in either case: bare, behind "(", "option " or "the answer is ". So "because" is B.
    """
    said, letter = given(x.text).lower().replace("\n", " "), x.answer.lower()
    return RewardOutput(float(said.startswith(tuple(form.format(letter) for form in _MMSTAR))))


def visulogic(x: RewardInput) -> RewardOutput:
    r"""VisuLogic (github.com/VisuLogic-Benchmark/VisuLogic-Eval, evaluation/eval_model.py), on the whole reply.

    The official prompt asks for a box, too. A letter in the last box, "\text{B}" and "$B$" among them, "(B)" not; else
    one that ends or begins the reply, else what follows one of the phrases up to the end of that line or sentence.
    Where there is none of these the authors ask a language model; here, as in VLMEvalKit, it is wrong.
    """
    text = reply(x.text)
    letter = _in_last_box(text) or _in_words(text)
    return RewardOutput(float(letter == x.answer), reason="" if letter else UNREAD)


def visualpuzzles(x: RewardInput) -> RewardOutput:
    """VisualPuzzles (lmms-eval, tasks/VisualPuzzles/utils.py), on the answer if there is one.

    The last letter behind "Answer:", else "(B)", "B)", "{B}", "$B$", "B."; else the only one of a very short text; else
    the text of the option that stands last, or behind "answer:"; else a random letter. A text that two options share is
    not looked for, as `meta` has it not.
    """
    text = f" {given(x.text)}"
    letter = _visualpuzzles_letter(text) or _by_text(text, x)
    if letter is not None:
        return RewardOutput(float(letter == x.answer))
    return RewardOutput(float(random.Random(x.id).choice(LETTERS) == x.answer), reason=RANDOM)


def erqa(x: RewardInput) -> RewardOutput:
    """ERQA (github.com/embodiedreasoning/ERQA, eval_harness.py, as other repositories quote it), on the answer if there
    is one: the gold letter and nothing else, full stops and case aside."""
    return RewardOutput(float(given(x.text).replace(".", "").strip().lower() == x.answer.lower()))


def _in_last_box(text: str) -> str | None:
    """The letter in the last box; a brace behind a backslash, or right behind another one, closes nothing."""
    opened: list[int] = []
    content = None
    for match in _BOX_OR_BRACE.finditer(text):
        if match[0].startswith("\\boxed"):
            opened.append(match.end())
        elif opened:
            start = opened.pop()
            content = content if opened else text[start : match.start() + 1]
    if content is None or len(text) < 3:
        content = text
    else:
        for mark in _TAKEN_OUT:
            content = content.replace(mark, "")
    return content.strip() if content.strip() in LETTERS and (content == text or len(content) <= 2) else None


def _in_words(text: str) -> str | None:
    for letter in LETTERS:
        ends = tuple(form.format(letter) for form in _VISULOGIC_ENDS)
        if text.endswith(ends) or text.startswith(tuple(form.format(letter, letter) for form in _VISULOGIC_STARTS)):
            return letter
    lower = text.lower()
    for phrase in _VISULOGIC_PHRASES:
        if phrase in lower:  # the next phrases are looked for in what is left
            lower = lower.split(phrase)[-1].strip().split("\n")[0].split(".")[0]
            if lower.upper() in LETTERS:
                return lower.upper()
    return None


def _visualpuzzles_letter(text: str) -> str | None:
    for form in (*_VISUALPUZZLES, *[_SHORT] * (len(text) <= _SHORT_CHARS)):
        found = [letter for letter in map(str.upper, form.findall(text)) if letter in LETTERS]
        if found:
            return found[-1]
    return None


def _by_text(text: str, x: RewardInput) -> str | None:
    options = {letter: said for letter, said in options_of(x).items() if said and said != letter}
    lower = text.lower()
    for letter, said in options.items():  # the text is not put into lower case
        if f"answer: {said}" in lower or f"answer:{said}" in lower:
            return letter
    found = {letter: text.rfind(said) for letter, said in options.items() if said in text}
    return max(found, key=lambda letter: found[letter]) if found else None
