"""`sapo-vl reward test`: what a reward gives to responses of which it is known whether they are right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.judging.canaries import RIGHT, WRONG, Canary
from sapo_vl.scoring.lines import RewardLinesError, score_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A problem, the response that must get the best score, and responses that must get less."""

    answer: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    right: str = ""  # "": <answer>{answer}</answer>
    wrong: tuple[str, ...] = ()
    max_tokens: int | None = None  # None: as many as the response has words

    @property
    def response(self) -> str:
        return self.right or f"<answer>{self.answer}</answer>"

    def line(self, response: str) -> str:
        """The line of `sapo-vl reward score` for this problem with `response`."""
        row = {"response": response, "answer": self.answer, "meta": dict(self.meta), "question": self.question}
        return json.dumps(row if self.max_tokens is None else {**row, "max_tokens": self.max_tokens})


def _program(*lines: str) -> str:
    return "\n".join(["<answer>```python", *lines, "```</answer>"])


def _of_canary(canary: Canary) -> Sample:
    said = f"<answer>{canary.answer}</answer>"
    if canary.right:
        return Sample(answer=canary.gold, question=canary.question, right=said)
    # What a wrong canary says is no answer to its question; the gold itself is.
    return Sample(answer=canary.gold, question=canary.question, wrong=(said,))


_SUM = {"tests": [{"input": "3 4\n", "output": "7\n"}, {"input": "-1 1\n", "output": "0\n"}]}
_ADD = {"asserts": ["assert add(3, 4) == 7", "assert add(-1, 1) == 0"]}
_HOUSES = json.dumps({"House 1": {"Name": "Eric", "Drink": "tea"}, "House 2": {"Name": "Ann", "Drink": "milk"}})
_SWAPPED = json.dumps({"House 1": {"Name": "Ann", "Drink": "milk"}, "House 2": {"Name": "Eric", "Drink": "tea"}})

SAMPLES: dict[str, Sequence[Sample]] = {
    "box": [Sample(answer="10 20 50 60"), Sample(answer="1 2 5 6", meta={"threshold": 0.7})],
    "chart": [Sample(answer="12.5"), Sample(answer="Brazil")],
    "choice": [Sample(answer="B", meta={"options": {"A": "red", "B": "blue"}}), Sample(answer="C")],
    "code": [
        Sample(
            meta=_SUM,
            right=_program("print(sum(map(int, input().split())))"),
            wrong=(_program("print(7)"), _program("import os", "os._exit(0)")),
        ),
        Sample(
            meta=_ADD,
            right=_program("def add(a, b):", "    return a + b"),
            wrong=(_program("def add(a, b):", "    return 7"),),
        ),
    ],
    "count": [Sample(answer="7"), Sample(answer="12")],
    "format": [
        Sample(right="<think>two and two</think> <answer>4</answer>", wrong=("", "<answer>4</answer>", "4")),
        Sample(right="<think> a </think>\n<answer> b </answer>", wrong=("<think></think><answer></answer>",)),
    ],
    "json_grid": [Sample(answer=_HOUSES), Sample(answer=_SWAPPED)],
    "judge": [_of_canary(canary) for canary in (*RIGHT, *WRONG)],
    "language": [
        Sample(meta={"language": "en"}, right="three red balls", wrong=("三个红球",)),
        Sample(meta={"language": "zh"}, right="三个红球, x = 3", wrong=("three red balls", "三个 balls")),
    ],
    "list": [Sample(answer="red, blue"), Sample(answer="1; 2; 3", meta={"ordered": True})],
    "math": [Sample(answer="\\frac{1}{2}"), Sample(answer="x^2 + 1")],
    "maze": [
        Sample(answer="R R D D", meta={"grid": ["S..", "##.", "..G"]}),
        Sample(answer="D", meta={"grid": ["S", "G"]}),
    ],
    "number": [Sample(answer="42"), Sample(answer="3/4")],
    "ocr": [Sample(answer="Total 12.50"), Sample(answer="EXIT")],
    "overlong": [Sample(right="a b c d", wrong=("a b c d e f g h i", "a " * 20), max_tokens=10)],
    "repetition": [Sample(right="a b c d e f g h i j", wrong=("a b c " * 5,))],
    "weighted": [Sample(answer="Total 12.50"), Sample(answer="EXIT")],
    "word": [Sample(answer="dark green"), Sample(answer="left")],
}

# Rewards that look at the form of a response, whatever the problem is: an empty one or another problem's may be right.
OF_FORM = frozenset({"format", "language", "overlong", "repetition"})
PENALTIES = frozenset({"language", "overlong", "repetition"})  # the best score is 0
PARAMS: dict[str, dict[str, Any]] = {"weighted": {"weights": {"ocr": 0.5, "word": 0.5}}}  # unless others are given


def read_samples(lines: Iterable[str]) -> list[Sample]:
    """Problems from lines {"answer", "meta", "question", "response"}; the response is a right one, and may be missing.

    Raises:
        RewardLinesError: a line is no such object, or there are none.
    """
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RewardLinesError(f"line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("answer"), str | int | float):
            raise RewardLinesError(f'line {number} must be an object with an "answer", a text or a number')
        meta, right, question = row.get("meta") or {}, row.get("response", ""), row.get("question", "")
        if not (isinstance(meta, dict) and isinstance(right, str) and isinstance(question, str)):
            raise RewardLinesError(f'line {number}: "meta" must be an object, "response" and "question" texts')
        samples.append(Sample(answer=str(row["answer"]), meta=meta, question=question, right=right))
    if not samples:
        raise RewardLinesError('there is no line in the file; each must be like {"answer": "42", "meta": {}}')
    return samples


def try_reward(
    name: str, params: Mapping[str, Any] | None = None, samples: Sequence[Sample] | None = None, timeout_s: float = 10.0
) -> tuple[str, bool]:
    """A table of what a reward gives to right responses and to wrong ones; whether all is well.

    Right responses must get the best score, 1 or for a penalty 0. Empty ones, those that are right for another problem,
    and the wrong ones of the samples must get less.

    Args:
        name: a reward of REWARDS, or "my_reward.py:function", which needs `samples`.
        params: its keyword arguments.
        samples: problems in place of SAMPLES.

    Raises:
        RewardLinesError: there is no such reward, it cannot run here with these params, or there are no samples.
    """
    chosen = SAMPLES.get(name, ()) if samples is None else samples
    if not chosen:
        raise RewardLinesError(f'{name!r} has no samples; give a file of lines like {{"answer": "42", "meta": {{}}}}')
    given = PARAMS.get(name, {}) if not params and samples is None else params or {}
    best = 0.0 if name in PENALTIES else 1.0
    table, fine = [f"{'response':16}  {'n':>3}  {f'score {best:g}':>7}  statuses"], True
    for kind, lines in _kinds(name, chosen).items():
        results = list(score_lines(name, lines, given, timeout_s, 1))
        full = sum(r["score"] == best for r in results)
        right = full == (len(results) if kind == "gold" else 0)
        statuses = ", ".join(f"{count} {status}" for status, count in Counter(r["status"] for r in results).items())
        table.append(f"{kind:16}  {len(results):3}  {full:7}  {statuses}{'' if right else '   <- wrong'}")
        table += [f"    {reason}" for reason in sorted({r["reason"] for r in results if r["status"] != "scored"})]
        fine &= right
    return "\n".join(table), fine


def _kinds(name: str, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Lines by what their responses are; those of "gold" must get the best score."""
    golds = [sample for sample in samples if sample.right or not sample.wrong]
    kinds = {"gold": [sample.line(sample.response) for sample in golds]}
    if name not in OF_FORM:
        kinds["empty"] = [sample.line("") for sample in golds]
        kinds["empty answer"] = [sample.line("<answer></answer>") for sample in golds]
        others = [*golds[1:], *golds[:1]]
        pairs = [(a, b) for a, b in zip(golds, others, strict=True) if a.response != b.response]
        kinds["another's gold"] = [sample.line(other.response) for sample, other in pairs]
    kinds["wrong"] = [sample.line(response) for sample in samples for response in sample.wrong]
    return {kind: lines for kind, lines in kinds.items() if lines}
