r"""MathVision: the last box, or what stands behind "the answer is", rid of LaTeX; equal as text, or as a number."""

from __future__ import annotations

import re

from rewards.answers.extract import reply
from rewards.base import RewardInput, RewardOutput
from rewards.official.given import options_of

MAX_CHARS = 400  # of what is compared as a number; no gold has more than a few dozen
_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_BARE_FRACTION = re.compile(r"\\frac(?!\{)")
_FULL_STOP = re.compile(r"(?<=\d)\.(?!\d)")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
# Taken out, or written another way, in this order. Blanks are gone by then. That the script also writes 1/2 and 0.5 in
# another way changes no number, and so no verdict.
_REWRITTEN = (
    ("\\,", ""), ("\u221e", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", ""), ("\\text", ""),
    ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
    ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", ""), ("{km}", ""), ("km", ""), ("\\!", ""),
    ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""),
    ("^\\circ", ""), ("\\$", ""), ("$", ""), ("\\%", ""), ("{.", "{0."),
)  # fmt: skip


def mathvision(x: RewardInput) -> RewardOutput:
    """MathVision (github.com/mathllm/MATH-V, evaluation/evaluate.py and utils.py), on the whole reply.

    The answer found there must be the gold letter or the text of its option (or the gold, without options): the same
    but for case, or the same number to two decimals. The script runs `eval` on what its LaTeX parser makes of both;
    here SymPy works the numbers out, and what is no plain mathematics to rewards.answers.latex is no number.
    """
    answer = find_answer(reply(x.text))
    golds = [x.answer, options_of(x).get(x.answer, "")]
    return RewardOutput(float(any(is_equal(gold, answer) for gold in golds)))


def find_answer(response: str) -> str:
    """What the script takes for the answer: lower case, without blanks and units; junk where it finds none."""
    text = _last_said(_letter_or_number(response.strip()))
    found = _cleaned(text.lower())
    for letter in "abcde":
        found = found.replace(f"({letter})", letter)
    for letter in "abcde":
        found = found.replace(f"{{{letter}}}", letter)
    return found.rstrip(".").lstrip(":").strip()


def _letter_or_number(text: str) -> str:
    """A letter that ends or begins the response, a number that ends it after "is "; else the response."""
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
            (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        ):
            text = letter
    tail = text.split("is ")[-1].rstrip(".")
    return tail if is_float(tail) else text


def _last_said(text: str) -> str:
    """From the last of several boxes on; without a box what follows the phrases, up to the end of that sentence."""
    if "oxed{" in text:
        return text if text.count("oxed{") == 1 else "\\boxed{" + text.rpartition("oxed{")[2]
    for phrase in _PHRASES:
        for spelling in (phrase, phrase.replace("the", "The", 1)):
            _, found, behind = text.rpartition(spelling)
            text = (behind if found else text).strip()
            if found:
                text = text.split("\n")[0].split(". ")[0]
    return text


def _cleaned(text: str) -> str:
    text = text.replace("{}", "")
    start, end = text.find("oxed{"), text.rfind("}")
    if 0 <= start < end - len("oxed{") + 1:
        text = text[start + len("oxed{") : end]
    closing, opening = text.find("}"), text.find("{")
    if closing >= 0 and (opening < 0 or closing < opening):
        text = text[:closing]
    text = text.split("=")[-1].split("\\approx")[-1].replace(" ", "")
    for old, new in _REWRITTEN:
        text = text.replace(old, new)
    return "0" + text if text.startswith(".") else text


def is_equal(gold: str, answer: str) -> bool:
    """The same text, or, in brackets, the same numbers, or the same number; to two decimals."""
    gold, answer = gold.lower(), answer.lower()
    if not gold.strip() or not answer.strip():
        return False
    if gold.strip() == answer.strip() or _in_brackets(gold) == _in_brackets(answer):
        return True
    value = rounded(answer)
    return value is not None and value == rounded(gold)


def _in_brackets(text: str) -> str:
    """ "(1/2, 3)" with its elements rounded; any other text, and one with an element that is no number, as it is."""
    elements = text[1:-1].split(",")
    if len(elements) < 2 or (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        return text
    values = [e if "infty" in e or e in ("a", "-a") else rounded(e) for e in elements]
    return text if None in values else f"{text[0]}{','.join(map(str, values))}{text[-1]}"


def rounded(text: str) -> float | None:
    """The number that the script's parser reads, to two decimals; it has ways of its own, see `as_read`."""
    from rewards.answers.symbolic import value_of  # takes more than a second: see rewards.PRELOAD

    plain = as_read(text)
    value = value_of(plain) if 0 < len(plain) <= MAX_CHARS else None
    return None if value is None else round(value, 2)


def as_read(text: str) -> str:
    """What is left of a text for the script's LaTeX parser; "" if it gives up.

    Dollar signs are overlooked, "8:5" is a division. It stops at a brace that closes nothing, and at a full stop behind
    a number. It does not know degrees, nor fractions without braces, which the script mends beside a root alone.
    """
    text = text.replace("$", "").replace(":", "/").strip()
    if "circ" in text or ("sqrt" not in text and _BARE_FRACTION.search(text)):
        return ""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            text = text[:i]
            break
    text = _FULL_STOP.split(text)[0]
    whole = _IN_BRACES.fullmatch(text)
    return whole[1] if whole else text


def is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
