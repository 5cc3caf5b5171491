"""How hard is each problem for a given model? Pass rates of n samples, and the rows that are worth training on.

A problem that all samples get wrong, or nearly all right, gives a group-relative method nothing to learn from. With
blank images the same measurement finds what is solved without looking.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.data.feed import read_prompt
from sapo_vl.data.problem_set import BadRow, DataError, ProblemSet, blank_twin
from sapo_vl.data.writer import copy_set
from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.evaluation.config import EvaluationSections
from sapo_vl.learning.optim import ZeroConfig
from sapo_vl.model.chat import Chat
from sapo_vl.rollout import SamplingParams
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import SamplingSession, open_sampling, setup_logging
from sapo_vl.strict import Strict
from sapo_vl.types import Problem, Prompt, ScoreStatus

log = logging.getLogger(__name__)
BATCH = 128  # prompts at a time on a rank


class DifficultyRule(Strict):
    """What is measured and what stays."""

    split: str = "train"
    samples: int = 8  # responses a problem
    above: float = 0.0  # a problem stays if its pass rate is above this
    up_to: float = 0.9  # and not above this
    blank: bool = False  # measure with blank images; then only `up_to` counts, and problems without images stay

    @property
    def key(self) -> str:
        """Of the pass rate in the problem's meta."""
        return "pass_rate_blank" if self.blank else "pass_rate"

    def verdict(self, rate: float | None, has_images: bool) -> str:
        """Why a problem with this pass rate is left out, or "" if it stays. None: could not be measured."""
        if self.blank and not has_images:
            return ""
        if rate is None:
            return "not measured"
        if self.blank:
            return "solvable without the image" if rate > self.up_to else ""
        if rate <= self.above:
            return "too hard"
        return "too easy" if rate > self.up_to else ""


def measure_set(
    config: EvaluationSections, zero: ZeroConfig, folder: Path, out: Path, rule: DifficultyRule
) -> dict[str, int] | None:
    """Writes `folder` anew as `out`: `rule.split` filtered, its pass rates in meta; the other splits as they are.

    Runs in this process, or on all ranks if a launcher started it. Returns how many rows stay or are left out and why,
    None on the other ranks. Raises FileExistsError if `out` is there, and what opening a session raises.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or delete this one")
    problems = ProblemSet(folder, rule.split)
    work = out.parent / f".{out.name}.work"  # in which weights may be handed to a rollout engine
    work.mkdir(parents=True, exist_ok=True)
    world = init_world()
    setup_logging(world)
    with Scorer(config.rewards, world) as scorer:
        scorer.check(problems.rewards, dataset=str(folder))
        session = open_sampling(
            config.model, zero, config.rollout, world,
            seed=config.seed, gpu_share=config.eval.gpu_memory_utilization, out=work,
        )  # fmt: skip
        rates, bad = pass_rates(session, problems, scorer, config, rule)
        session.rollouts.close()
    counts = None
    if world.is_main:
        shutil.rmtree(work)
        counts = filtered(config, folder, out, rule, rates, bad)
    world.barrier()
    shutdown_world()
    return counts


def pass_rates(
    session: SamplingSession, problems: ProblemSet, scorer: Scorer, config: EvaluationSections, rule: DifficultyRule
) -> tuple[list[float | None], dict[int, str]]:
    """The mean of the part "accuracy" over the samples of every row that could be scored, and of every row that never
    became a prompt the reason; the same on every rank."""
    world = session.world
    # Every rank needs equally many prompts, since sharded engines run in step: the surplus repeats the last row.
    each = -(-len(problems) // world.size)
    mine = [min(row, len(problems) - 1) for row in range(world.rank * each, (world.rank + 1) * each)]
    params = SamplingParams(
        n=rule.samples,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        seed=config.seed,
    )
    rates: list[float | None] = []
    unread: dict[int, str] = {}
    for start in range(0, each, BATCH):
        rows = mine[start : start + BATCH]
        read = [_prompt(problems, row, session.chat, rule) for row in rows]
        unread |= {row: bad.kind for row, (_, bad) in zip(rows, read, strict=True) if bad is not None}
        prompts = [prompt for prompt, _ in read]
        stand_in = _stand_in(prompts, world)
        if stand_in is None:
            rates += [None] * len(prompts)
            continue
        groups = session.rollouts.generate([p or stand_in for p in prompts], params)
        for prompt, group in zip(prompts, scorer.score(groups, params.max_new_tokens), strict=True):
            scores = [r.parts["accuracy"] for r in group.rollouts if r.score_status is ScoreStatus.SCORED]
            rates.append(sum(scores) / len(scores) if prompt is not None and scores else None)
        log.info("difficulty: %d of %d problems", min(start + BATCH, each) * world.size, len(problems))
    everyone = [rate for part in world.gather(rates) for rate in part][: len(problems)]
    return everyone, {row: kind for part in world.gather(unread) for row, kind in part.items()}


def _prompt(problems: ProblemSet, row: int, chat: Chat, rule: DifficultyRule) -> tuple[Prompt | None, BadRow | None]:
    """No prompt where there is nothing to measure, and why if the row is to blame; with nothing to blank it is not."""
    try:
        prompt, bad = read_prompt(problems, row, chat, change=_blanked if rule.blank else None)
    except _NothingToBlank:
        return None, None
    if bad is not None:
        log.warning("not measured: %s", bad)
    return prompt, bad


class _NothingToBlank(Exception):
    """A problem without images."""


def _blanked(problem: Problem) -> Problem:
    if not problem.images:
        raise _NothingToBlank
    return blank_twin(problem)


def _stand_in(prompts: Sequence[Prompt | None], world: World) -> Prompt | None:
    """A prompt for rows that have none, the same kind of work on every rank; None if no rank has any."""
    everyone = world.gather(next((p for p in prompts if p is not None), None))
    return next((p for p in everyone if p is not None), None)


def filtered(
    config: EvaluationSections,
    folder: Path,
    out: Path,
    rule: DifficultyRule,
    rates: Sequence[float | None],
    unread: Mapping[int, str] | None = None,
) -> dict[str, int]:
    """Writes `folder` anew as `out`, given the pass rate of every row of `rule.split`, and of rows that never became a
    prompt the reason.

    Returns how many rows stay, or go and why. Raises DataError if none stays.
    """
    unread = unread or {}

    def verdict(row: int, has_images: bool) -> str:
        return f"not measured: {unread[row]}" if row in unread else rule.verdict(rates[row], has_images)

    if not rule.blank and all(verdict(row, True) for row in range(len(rates))):
        why = Counter(verdict(row, True) for row in range(len(rates)))
        raise DataError(f"nothing is left of split {rule.split!r} of {folder}: {dict(why)}; nothing was written")
    counts: Counter[str] = Counter()
    met: set[int] = set()

    def change(row: int, problem: Problem) -> Problem | None:
        met.add(row)
        why = verdict(row, bool(problem.images))
        counts[why or "kept"] += 1
        return None if why else dataclasses.replace(problem, meta={**problem.meta, rule.key: rates[row]})

    notes: dict[str, Any] = {rule.split: {"left_out": counts}}
    arguments = rule.model_dump() | {"model": config.model.path, "temperature": config.rollout.temperature}
    copy_set(folder, out, {rule.split: change}, recipe="difficulty", arguments=arguments, notes=notes)
    # Rows that are no problem at all never reach `change`; the manifest has them as "unreadable".
    counts.update(f"not measured: {kind}" for row, kind in unread.items() if row not in met)
    return dict(counts)
