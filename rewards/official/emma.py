r"""EMMA: the last box, or what stands behind "answer is"; the same text, a number word, or a value to two decimals."""

from __future__ import annotations

import re

from rewards.answers.extract import reply
from rewards.base import RewardInput, RewardOutput
from rewards.official.given import options_of
from rewards.official.mathvision import MAX_CHARS, is_float, rounded

_OPENINGS = ("{}:", "{}.")  # behind a letter that begins the reply
_BRACE = re.compile("[{}]")
_SET_AS_TEXT = re.compile(r"\\text{(.*?)}")
_PHRASES = ("final answer is", "correct answer is", "answer should be", "answer is", "answer:")

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: number for number, word in enumerate(_ONES)} | {w: 10 * n for n, w in enumerate(_TENS, start=2)}
_POWERS = {"thousand": 1000, "million": 10**6, "billion": 10**9}


def emma(x: RewardInput) -> RewardOutput:
    """EMMA (github.com/EMMA-Bench/EMMA, evaluate.py: its "fast" rule), on the whole reply: the prompt asks for a box.

    What is found must be the gold letter, the text of its option, or the gold: the same but for case; a number in words
    anywhere in it; the same number to two decimals. (The paper's other figure is a model's.)
    """
    answer = find_answer(reply(x.text))
    golds = [x.answer, options_of(x).get(x.answer, "")]
    return RewardOutput(float(any(is_equal(answer, gold) for gold in golds if gold)))


def find_answer(response: str) -> str:
    """A letter that is the reply or begins it, a reply that is a number, the last box, or what is behind a phrase."""
    text = response.strip()
    for letter in "ABCDEFGH":
        if text.upper() == letter or text.startswith(tuple(form.format(letter) for form in _OPENINGS)):
            return letter
    if is_float(text):
        return text
    boxed = _last_box(text)
    if boxed is not None:
        as_text = _SET_AS_TEXT.findall(boxed)
        return (as_text[-1] if as_text else boxed).strip()
    lower = text.lower()
    for phrase in _PHRASES:
        if phrase in lower:
            return lower.split(phrase)[-1].strip().split("\n")[0].split(".")[0]
    return ""


def _last_box(text: str) -> str | None:
    r"""What the last closed \boxed{...} holds; a box within a box is part of it."""
    found, at = None, 0
    while (start := text.find("\\boxed{", at)) >= 0:
        start, depth = start + len("\\boxed{"), 1
        for brace in _BRACE.finditer(text, start):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                found, at = text[start : brace.start()], brace.end()
                break
        else:
            break
    return found


def is_equal(answer: str, gold: str) -> bool:
    """The script has latex2sympy read both; here it is the reading of rewards.official.mathvision.

    It would also simplify the difference of two formulas, but gives up before, on the first that is no number.
    """
    answer, gold = answer.lower().strip(), gold.lower().strip()
    if answer == gold:
        return True
    number = number_in_words(answer)
    if number is not None and str(number) == gold:
        return True
    value = rounded(answer)
    return value is not None and value == rounded(gold)


def number_in_words(text: str) -> int | None:
    """The number words of a text as one number, whatever stands between them ("about three dots" is 3); digits alone
    are a number, too. None if there are none. (As the package word2number has it, less its decimals and its ways with
    words that make no number, "two three".)"""
    text = text.replace("-", " ")
    if text.isdecimal():
        return int(text[:MAX_CHARS])
    words = [word for word in text.split() if word in _WORDS or word in _POWERS or word == "hundred"]
    if "point" in text.split():
        return None
    total, part = 0, 0
    for word in words:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _POWERS:
            total, part = total + max(part, 1) * _POWERS[word], 0
        else:
            part += _WORDS[word]
    return total + part if words else None
