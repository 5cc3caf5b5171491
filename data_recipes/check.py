"""`sapo-vl recipe check DIR`: what the rewards give to the golds of a whole split, and to what is no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_recipes.filters import folded
from data_recipes.golds import UNCHECKED, Judge, gold_reasons, gold_response
from rewards.number import parse_number
from sapo_vl.data.problem_set import BadRow, ProblemSet
from sapo_vl.types import Problem

BATCH = 256
EMPTY = "<answer></answer>"
# Shares of foreign golds that may score 1. To some rewards what is near is right: 1950 is within a chart's 5% of 1960,
# and boxes on a small lattice often overlap by half.
SHARE = 0.05
SHARE_WHERE_NEAR_IS_RIGHT = 0.25
NEAR_IS_RIGHT = ("box", "chart", "ocr")


@dataclass(slots=True)
class TaskCheck:
    """The counts of one task."""

    problems: int = 0
    golds: int = 0  # golds that score 1
    unchecked: int = 0  # programs and mazes without a reference solution
    empty: int = 0  # empty answers that score 1; must be 0
    shuffled: int = 0  # golds of another problem, with another answer, that were tried
    shuffled_right: int = 0  # of those, how many score 1 all the same
    allowed: float = 0.0  # how many of those may
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (id, reason) of golds that do not score 1; none
    paid: list[tuple[str, str]] = field(default_factory=list)  # (id, what scored 1 and must not)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id, reason) of rows; none

    @property
    def fine(self) -> bool:
        return not (self.rejected or self.empty or self.unreadable) and self.shuffled_right <= self.allowed


def check_set(problems: ProblemSet, judge: Judge) -> dict[str, TaskCheck]:
    """The counts by task, over all rows.

    Every problem is also answered with the gold of another one that is written otherwise and no equal number. What of
    that scores 1 is listed, so that one can look; a share of it is let pass.
    """
    checks: dict[str, TaskCheck] = {}
    for task, batch in _batches(problems, checks):
        check = checks.setdefault(task, TaskCheck())
        check.problems += len(batch)
        _golds(check, batch, judge)
        _nothing(check, batch, judge)
        foreign_golds(check, batch, judge)
    return dict(sorted(checks.items()))


def _batches(problems: ProblemSet, checks: dict[str, TaskCheck]) -> Iterator[tuple[str, list[Problem]]]:
    """Problems of one task at a time."""
    waiting: dict[str, list[Problem]] = {}
    for index, task in enumerate(problems.tasks):
        try:
            problem = problems.get(index)
        except BadRow as bad:
            checks.setdefault(task, TaskCheck()).unreadable.append((bad.id, str(bad)))
            continue
        batch = waiting.setdefault(task, [])
        batch.append(problem)
        if len(batch) == BATCH:
            yield task, waiting.pop(task)
    yield from waiting.items()


def _golds(check: TaskCheck, batch: Sequence[Problem], judge: Judge) -> None:
    for problem, (reason, detail) in zip(batch, gold_reasons(judge, batch), strict=True):
        if not reason:
            check.golds += 1
        elif reason == UNCHECKED:
            check.unchecked += 1
        else:
            check.rejected.append((problem.id, f"{reason}: gold {problem.answer[:60]!r}: {detail}"))


def _nothing(check: TaskCheck, batch: Sequence[Problem], judge: Judge) -> None:
    for problem, result in zip(batch, judge.results((p, EMPTY) for p in batch), strict=True):
        if result.score == 1:
            check.empty += 1
            check.paid.append((problem.id, "an empty answer"))


def foreign_golds(check: TaskCheck, batch: Sequence[Problem], judge: Judge) -> None:
    """Counts what each problem pays for the gold of the next one that has another."""
    pairs = []
    for place, problem in enumerate(batch):
        rotated = (*batch[place + 1 :], *batch[:place])
        given = (gold_response(other) for other in rotated if _differs(other, problem))
        if (response := next((r for r in given if r is not None), None)) is not None:
            pairs.append((problem, response))
    check.shuffled += len(pairs)
    check.allowed += sum(SHARE_WHERE_NEAR_IS_RIGHT if p.reward in NEAR_IS_RIGHT else SHARE for p, _ in pairs)
    for (problem, response), result in zip(pairs, judge.results(pairs), strict=True):
        if result.score == 1:
            check.shuffled_right += 1
            check.paid.append((problem.id, f"gold {problem.answer[:60]!r}, paid for {response[:80]!r}"))


def _differs(other: Problem, problem: Problem) -> bool:
    if problem.reward in ("code", "maze"):
        return other.solution != problem.solution
    value = parse_number(problem.answer)
    return folded(other.answer) != folded(problem.answer) and (value is None or parse_number(other.answer) != value)


def table(checks: dict[str, TaskCheck], shown: int = 20) -> str:
    """The counts by task, then the first rows of each kind of failure."""
    lines = [f"{'task':24} {'rows':>7} {'golds = 1':>10} {'unchecked':>10} {'empty = 1':>10} {'shuffled = 1':>16}"]
    for task, c in checks.items():
        shuffled = f"{c.shuffled_right} of {c.shuffled}"
        lines.append(f"{task:24} {c.problems:7} {c.golds:10} {c.unchecked:10} {c.empty:10} {shuffled:>16}")
    for title, rows in (
        ("rows that cannot be read", [row for c in checks.values() for row in c.unreadable]),
        ("golds that their own reward rejects", [row for c in checks.values() for row in c.rejected]),
        ("answers that score 1 and should not", [row for c in checks.values() for row in c.paid]),
    ):
        if rows:
            why = Counter(reason.partition(":")[0] for _, reason in rows) if title.startswith("golds") else Counter()
            lines += ["", f"{title}: {len(rows)} {dict(why) or ''}".rstrip()]
            lines += [f"  {id}  {reason}" for id, reason in rows[:shown]]
            lines += [f"  and {len(rows) - shown} more"] if len(rows) > shown else []
    return "\n".join(lines)
