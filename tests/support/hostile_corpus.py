r"""Responses that try to cheat or to break a reward, with the score that each must get.

They stand in tests/rewards/hostile/*.jsonl, one a line:

    {"reward": "number", "gold": "5", "meta": {"unit": "m"}, "text": "<answer>5 m m</answer>", "score": 0, "why": "..."}

`text` is the response, or a list of pieces, each a text or [text, repeats], for the long ones. "{marker}" in it becomes
the path of a file that must not come into being. `score` is a number, or a fraction as text ("5/6"), for rewards that
give part of the credit. With the reward "*" the response goes to every reward in CANARIES but those in OWN_SHAPES, and
"{gold}" in it becomes the reward's gold.

To cover another reward: a line in CANARIES, and a file of its own beside the others.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from rewards import RewardInput
from rewards.workers.worker import Job

FOLDER = Path(__file__).resolve().parents[1] / "rewards" / "hostile"


@dataclass(frozen=True)
class Canary:
    """A problem with one answer that is right and one that is wrong, scored after hostile responses of its reward."""

    gold: str
    right: str
    wrong: str
    meta: dict[str, Any] = field(default_factory=dict)
    every: int = 1  # after how many hostile responses: 1 for each, more where a response takes long


HOUSES = '{"House 1": {"Name": "Eric", "Drink": "tea"}, "House 2": {"Name": "Arnold", "Drink": "milk"}}'

ADDITIONS = {"tests": [{"input": "3 4\n", "output": "7\n"}]}
ADD = "```python\nprint(sum(map(int, input().split())))\n```"

CANARIES = {
    "box": Canary("1 2 5 6", "[1, 2, 5, 5]", "3 2 7 6"),
    "chart": Canary("250", "262", "263"),
    "choice": Canary("B", "b", "C", {"options": {"A": "red", "B": "blue", "C": "green"}}),
    "code": Canary("", ADD, ADD.replace("sum", "max"), ADDITIONS, every=6),
    "count": Canary("12", "twelve", "13"),
    "json_grid": Canary(HOUSES, HOUSES.upper(), HOUSES.replace("tea", "milk")),
    "list": Canary("red, 7", "7; RED", "red, 7, blue"),
    "math": Canary(r"\frac{1}{2}", "0.5", r"\frac{1}{3}"),
    "maze": Canary("RRDDL", "right right down down left", "RRDD", {"grid": ["S..", "##.", ".G."]}),
    "number": Canary("42", "42.0", "43"),
    "ocr": Canary("exit", "EXIT", "open"),  # short, so that a few characters more leave no part of the credit
    "word": Canary("red", "Red", "blue"),
}


# These look for a program or a JSON object in the answer, whatever stands around it: their own files have their shapes.
OWN_SHAPES = frozenset({"code", "json_grid"})


@dataclass(frozen=True)
class Case:
    reward: str
    gold: str
    meta: dict[str, Any]
    text: str
    score: float
    why: str

    def __str__(self) -> str:
        return f"{self.reward}, gold {self.gold!r}: {self.text[:120]!r} ({self.why})"


def cases(marker: Path) -> Iterator[Case]:
    """Every case of the corpus; `marker` is the file that must not come into being."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="ascii").splitlines():
            row = json.loads(line)
            pieces = [row["text"]] if isinstance(row["text"], str) else row["text"]
            text = "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in pieces)
            text = text.replace("{marker}", str(marker))
            score = float(Fraction(row["score"]))
            if row["reward"] == "*":
                for name, canary in CANARIES.items():
                    if name not in OWN_SHAPES:
                        filled = text.replace("{gold}", canary.gold)
                        yield Case(name, canary.gold, canary.meta, filled, score, row["why"])
            else:
                yield Case(row["reward"], row["gold"], row.get("meta", {}), text, score, row["why"])


def job(reward: str, text: str, gold: str, meta: dict[str, Any]) -> Job:
    return Job(reward, RewardInput(text=text, num_tokens=9, max_tokens=99, finish="stop", answer=gold, meta=meta))
