"""MathVista: the answer brought into the form of its type, then the same text as the gold."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rewards.answers.extract import bare, last_answer
from rewards.answers.numerals import read_numeral
from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.ocr import edit_distance
from rewards.official.given import group_of, options_of

_LETTER = re.compile(r"\(([a-zA-Z])\)")


def mathvista(x: RewardInput) -> RewardOutput:
    """MathVista (github.com/lupantech/MathVista, evaluation/calculate_score.py: normalize_extracted_answer).

    There a language model pulls the answer out of the response; here it is ours, of a number without its unit. Options:
    a letter in brackets, a letter, else the option whose text is nearest by edit distance, whatever the answer is,
    also where there is none. Integers are cut off (25.6 is 25), decimals rounded to meta["precision"], anything else
    is compared as it stands.
    """
    said, options = bare(last_answer(x.text) or ""), options_of(x)
    if options:
        return RewardOutput(float(_option(said, options, x.meta.get("same") or {}) == options.get(x.answer)))
    kind = group_of(x, "answer_type")
    if kind not in ("integer", "float"):
        return RewardOutput(float(said == x.answer))
    numeral = read_numeral(said)
    if numeral is None:
        return RewardOutput(0.0)
    if kind == "integer":
        return RewardOutput(float(str(int(numeral.value)) == x.answer))
    decimals = x.meta.get("precision")
    if not isinstance(decimals, int):
        raise Unscorable(f"meta['precision'] must be a count of decimals, got {decimals!r}")
    return RewardOutput(float(str(round(float(numeral.value), decimals)) == x.answer))


def _option(said: str, options: Mapping[str, str], same: Mapping[str, str]) -> str:
    """The text of the option that is meant; of equally near ones the first. `same`: letters of options that have the
    text of another one -> the letter of that."""
    in_brackets = _LETTER.search(said)
    letter = in_brackets[1].upper() if in_brackets else said
    if letter in options:
        return options[same.get(letter, letter)]
    texts = [text for text in options.values() if text]
    return min(texts, key=lambda text: edit_distance(text, letter, len(text) + len(letter)), default="")
