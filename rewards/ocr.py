"""How close is the transcribed text to the gold?"""

from __future__ import annotations

from typing import Any

from rewards.answers.extract import bare
from rewards.answers.extract import last_answer as final_answer
from rewards.base import RewardInput, RewardOutput, Unscorable, missing

THRESHOLD = 0.5
MAX_GOLD_CHARS = 20_000  # of all golds together


def ocr(x: RewardInput) -> RewardOutput:
    """ANLS, the score of ICDAR 2019 ST-VQA (arXiv 1907.00490, section 3), in [0, 1].

    With NL the edit distance (insertions, deletions, substitutions) divided by the length of the longer text:
    1 - NL if NL < 0.5, else 0; the best over all golds. The golds are the answer of the problem and the texts of
    meta["answers"]. Case and the amount of white space do not matter; with meta["case"] = true case does.

    Time grows with the length of the answer times that of the golds, 64 characters at a time: 0.3 s at most. An
    answer at least twice as long as a gold scores 0 against it without any comparison.

    Raises:
        Unscorable: there is no gold, one is empty or no text, or they have more than 20,000 characters in all.
    """
    case = x.meta.get("case", False)
    if not isinstance(case, bool):
        raise Unscorable(f"meta['case'] must be true or false, got {case!r}")
    golds = _golds(x.answer, x.meta.get("answers", ()), case)
    found = final_answer(x.text)
    answer = _comparable(found or "", case)
    return RewardOutput(max(_similarity(gold, answer) for gold in golds), reason=missing(found))


def edit_distance(a: str, b: str, limit: int) -> int:
    """Levenshtein distance of `a` and `b`, or any number above `limit` if it is larger than `limit`.

    Works on whole columns of the table at once, their differences kept as the bits of two integers (Myers 1999;
    the form of Hyyro 2003 for the distance of whole texts).
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    if not a or not b:
        return len(a) + len(b)
    where: dict[str, int] = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    last, ones = 1 << (len(a) - 1), (1 << len(a)) - 1
    up, down, distance = ones, 0, len(a)  # where the column rises by 1 from one row to the next, where it falls
    for left, char in enumerate(b):
        match = where.get(char, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right_up = down | (ones & ~(diagonal | up))
        right_down = diagonal & up
        distance += bool(right_up & last) - bool(right_down & last)
        if distance - (len(b) - left - 1) > limit:  # each column left over can lower it by 1 at most
            return limit + 1
        right_up = (right_up << 1 | 1) & ones
        right_down = (right_down << 1) & ones
        up = right_down | (ones & ~(diagonal | right_up))
        down = right_up & diagonal
    return distance


def _similarity(gold: str, answer: str) -> float:
    longer = max(len(gold), len(answer))
    if longer - min(len(gold), len(answer)) >= THRESHOLD * longer:
        return 0.0
    distance = edit_distance(gold, answer, int(THRESHOLD * longer))
    return 1 - distance / longer if distance < THRESHOLD * longer else 0.0


def _golds(answer: str, more: Any, case: bool) -> list[str]:
    if not isinstance(more, list | tuple) or not all(isinstance(text, str) for text in more):
        raise Unscorable(f"meta['answers'] must be a list of texts, got {str(more)[:60]!r}")
    golds = [_comparable(text, case) for text in ([answer] if answer or not more else []) + list(more)]
    if "" in golds:
        raise Unscorable("a reference answer is empty")
    if sum(map(len, golds)) > MAX_GOLD_CHARS:
        raise Unscorable(f"the reference answers have more than {MAX_GOLD_CHARS} characters")
    return golds


def _comparable(text: str, case: bool) -> str:
    return bare(text) if case else bare(text).casefold()
