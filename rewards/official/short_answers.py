"""Rules for short answers: ChartQA, RealWorldQA, CountBench, ZeroBench, DynaMath, HallusionBench.

None is cleverer than it is here.
"""

from __future__ import annotations

import math
import re

from rewards.answers.extract import last_answer, reply
from rewards.base import RewardInput, RewardOutput
from rewards.official.given import given, group_of, options_of

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_WORDS)}
DYNAMATH_TOLERANCE = 0.001
UNKNOWN = "neither yes nor no"
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # that the kit takes out of a reply: a flag stands where the count should


def chartqa(x: RewardInput) -> RewardOutput:
    """Relaxed accuracy (lmms-eval, tasks/chartqa/utils.py, after Qwen-VL's script), on the answer if there is one.

    Both numbers: within 5% of the gold, "x%" being x / 100. A gold of 0, and anything else: the same text but for case.
    """
    said = given(x.text)
    value, gold = _number_or_share(said), _number_or_share(x.answer)
    if value is not None and gold:
        return RewardOutput(float(abs(value - gold) / abs(gold) <= 0.05))
    return RewardOutput(float(said.lower() == x.answer.lower()))


def realworldqa(x: RewardInput) -> RewardOutput:
    """RealWorldQA (lmms-eval, tasks/realworldqa), on the answer if there is one.

    A number word up to ten becomes its digits; signs are taken out; the first text of an option that is in what is
    left becomes its letter. Then the same text as the gold but for case.
    """
    said = given(x.text)
    said = re.sub(r"[^\w\s]", "", _NUMBER_WORDS.get(said.lower(), said)).strip()
    places = {letter: said.find(text) for letter, text in options_of(x).items() if text and text in said}
    said = min(places, key=lambda letter: places[letter]) if places else said
    return RewardOutput(float(said.lower() == x.answer.lower()))


def countbench(x: RewardInput) -> RewardOutput:
    """CountBenchQA (VLMEvalKit): the gold's digits are in the answer, or in the reply where there is none: 10 for 1."""
    return RewardOutput(float(x.answer in given(x.text)))


def zerobench(x: RewardInput) -> RewardOutput:
    """ZeroBench (VLMEvalKit; the authors' own script was not at hand): the gold is in the last {...} of the reply.

    That is the official prompt's "final answer in curly braces"; here they are those of the box.
    """
    said = _last_braces(reply(x.text))
    return RewardOutput(float(said is not None and x.answer.strip().lower() in said.lower()))


def dynamath(x: RewardInput) -> RewardOutput:
    """DynaMath (github.com/DynaMath/DynaMath, evaluation/opensource_json_eval.py), on the answer.

    That is the "short answer" of the official prompt's JSON; where there is none the script takes the last line
    without its last character. A number is what stands before the first blank, or before π, and must be within 0.001; a
    letter is the answer, or is in its first three characters; of a text the gold is in the answer.
    (VLMEvalKit turns the last one round: the answer is in the gold.)
    """
    said = given(x.text)
    if last_answer(x.text) is None:
        said = said.split("\n")[-1][:-1]
    kind = group_of(x, "type")
    if kind == "float":
        value, gold = _number_or_pi(said if said.isdigit() else said.split(" ")[0]), _float(x.answer)
        near = value is not None and gold is not None and abs(value - gold) <= DYNAMATH_TOLERANCE
        return RewardOutput(float(near))
    if kind == "multiple choice":
        return RewardOutput(float(said == x.answer if len(said) == 1 else x.answer in said[:3]))
    return RewardOutput(float(x.answer in said))


def hallusionbench(x: RewardInput) -> RewardOutput:
    """HallusionBench in VLMEvalKit (dataset/utils/yorn.py) without a judge, on the answer if there is one.

    One of the words "yes" and "no" is in it, signs and case aside, and the other is not. What has both or neither is
    wrong here; there a language model may be asked. (The paper's own figures are a language model's.)
    """
    words = set(_without_signs(given(x.text).lower()).split())
    said = [word for word in ("yes", "no") if word in words]
    if len(said) != 1:
        return RewardOutput(0.0, reason=UNKNOWN)
    return RewardOutput(float(said[0] == x.answer))


def _without_signs(text: str) -> str:
    """A sign that stands beside a blank anywhere is taken out everywhere, another becomes a blank."""
    out, number = text, _COMMA_IN_NUMBER.search(text)
    for sign in _SIGNS:
        out = out.replace(sign, "" if number or f"{sign} " in text or f" {sign}" in text else " ")
    return _STOP.sub("", out, count=_MOST_STOPS)


def _last_braces(text: str) -> str | None:
    """From an opening brace to the first closing one, on one line; the last such piece."""
    pieces = [piece for line in text.split("\n") for piece in line.split("}")[:-1] if "{" in piece]
    return pieces[-1].partition("{")[2] if pieces else None


def _number_or_share(text: str) -> float | None:
    value = _float(text.rstrip("%"))
    return value / 100 if value is not None and text.endswith("%") else value


def _number_or_pi(text: str) -> float | None:
    before, pi, _ = text.partition("\u03c0")
    value = _float(before)
    return value * math.pi if value is not None and pi else value


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
