"""Is the answer the right count of things?"""

import re

from rewards.answers.extract import bare, last_answer
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable

_DIGITS = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,4}|[0-9]{1,15})(?:\.0{1,6})?")
_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def _number_words() -> dict[str, int]:
    """zero to ninety-nine, the latter also as "ninety nine"."""
    small = _SMALL.split()
    words = {name: value for value, name in enumerate(small)}
    for tens, name in enumerate(_TENS.split(), start=2):
        words[name] = 10 * tens
        words |= {f"{name}{join}{small[ones]}": 10 * tens + ones for ones in range(1, 10) for join in "- "}
    return words


WORDS = _number_words()


def count(x: RewardInput) -> RewardOutput:
    """1 if the answer is the gold count, else 0.

    A count is an integer from 0 to 10^15 - 1 in digits ("12", "1,200", "012", "12.0") or, up to ninety-nine, in
    English words ("twelve", "twenty-one"; case does not matter). Signs, units, ranges, "about 3", "a dozen" and "none"
    are no counts.

    Raises:
        Unscorable: the gold is no count.
    """
    gold = read_count(x.answer)
    if gold is None:
        raise Unscorable(f"the reference answer {x.answer[:40]!r} is not a count")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    value = read_count(answer)
    if value is None:
        return RewardOutput(0.0, reason="not a count")
    return RewardOutput(1.0) if value == gold else RewardOutput(0.0, reason=WRONG)


def read_count(text: str) -> int | None:
    """The count that `text` consists of, or None."""
    text = bare(text)
    if _DIGITS.fullmatch(text):
        return int(text.partition(".")[0].replace(",", ""))
    return WORDS.get(text.casefold())
