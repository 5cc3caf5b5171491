"""A local set of a benchmark as problems, and responses scored by the rule that a problem names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark_sets import write_set

from rewards import REWARDS, RewardInput
from sapo_vl.benchmarks import BENCHMARKS, ItemScores, LeftOut, Row
from sapo_vl.data.source import open_source
from sapo_vl.types import Problem


class Opened(NamedTuple):
    problems: dict[str, Problem]  # by id
    bad: list[str]  # messages of the rows that are broken
    left_out: list[str]  # reasons


def opened(name: str, folder: Path, only_good: bool = False) -> Opened:
    """The local set of a benchmark, opened as the runner opens one."""
    benchmark = BENCHMARKS[name]
    path = write_set(name, folder, only_good=only_good)
    source = open_source(str(path), benchmark.split, config=benchmark.config, columns=benchmark.columns)
    found = Opened({}, [], [])
    for index, cells in source.rows():
        assert isinstance(cells, dict), cells
        try:
            for problem in benchmark.problems(Row(index=index, cells=cells, image=source.image)):
                assert problem.id not in found.problems and problem.task and problem.reward in REWARDS
                assert said(problem).count("[image]") == len(problem.images)
                found.problems[problem.id] = problem
        except LeftOut as reason:
            found.left_out.append(str(reason))
        except ValueError as reason:
            found.bad.append(str(reason))
    return found


def scored(problem: Problem, response: str) -> float:
    x = RewardInput(
        text=response,
        num_tokens=9,
        max_tokens=99,
        finish="stop",
        answer=problem.answer,
        meta=problem.meta,
    )
    return REWARDS[problem.reward](x).score


def box(answer: str) -> str:
    return f"Some reasoning about 12 and B.\n\n\\boxed{{{answer}}}"


def said(problem: Problem) -> str:
    """All text of a problem's turn, with "[image]" for its images."""
    [turn] = problem.messages
    if isinstance(turn["content"], str):
        return turn["content"]
    return " ".join("[image]" if part["type"] == "image" else part["text"] for part in turn["content"])


def item(id: str, meta: dict[str, str], *scores: float | None) -> ItemScores:
    return ItemScores(id=id, meta=meta, scores=scores, parts=[{}] * len(scores))


Case = tuple[str, str, float, str]  # id of the problem, response, score worked out by hand, why


def check(name: str, folder: Path, cases: Sequence[Case]) -> Opened:
    """Opens the local set of a benchmark; each response must get its score."""
    found = opened(name, folder)
    assert len(cases) >= 10
    got = [(*case, scored(found.problems[case[0]], case[1])) for case in cases]
    wrong = [case for case in got if case[2] != case[4]]
    assert not wrong, f"(problem, response, right score, why, score): {wrong}"
    return found


def centre(problem: Problem, number: int = 0) -> tuple[int, ...]:
    """The colour in the middle of an image, by which the tests tell pictures apart."""
    image = problem.images[number]
    colour = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(colour, tuple)
    return colour
