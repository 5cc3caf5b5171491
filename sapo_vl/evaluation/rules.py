"""Scoring as a benchmark wants it, from the scoring that a run trains on; by our rule and by the benchmark's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sapo_vl.benchmarks import Benchmark
from sapo_vl.distributed import World
from sapo_vl.evaluation.config import Rule
from sapo_vl.scoring.scorer import ANY_TASK, Scorer, ScoringConfig
from sapo_vl.types import Problem, RolloutGroup

log = logging.getLogger(__name__)
OURS: Rule = "ours"
OFFICIAL: Rule = "official"


def rule_scoring(config: ScoringConfig, benchmark: Benchmark | None) -> ScoringConfig:
    """Scoring by the rule that a problem names, whatever the run trains on.

    Arguments that the benchmark gives its rules hold where the config says nothing else. What the config says about
    single tasks, params and limits stays; terms such as the format, a reward for all tasks, and a custom reward that
    no task names do not. Failures are counted and stop nothing.
    """
    by_task = {task: name for task, name in config.by_task.items() if task != ANY_TASK}
    path = config.path if config.path_name in by_task.values() else ""
    params = config.params if path else {k: v for k, v in config.params.items() if k != config.path_name}
    own = benchmark.params if benchmark else {}
    params = {rule: {**own.get(rule, {}), **params.get(rule, {})} for rule in own.keys() | params.keys()}
    return config.model_copy(
        update={
            "timeout_s": max(config.timeout_s, benchmark.timeout_s if benchmark else 0.0),
            "combine": {"accuracy": 1.0},
            "by_task": by_task,
            "path": path,
            "params": params,
            "max_failure_share": 1.0,
        }
    )


def official_scoring(config: ScoringConfig, rule: str) -> ScoringConfig:
    """Scoring by `rule`, a name of rewards.official, whatever a problem names."""
    return ScoringConfig(
        combine={"accuracy": 1.0},
        by_task={ANY_TASK: rule},
        timeout_s=config.timeout_s,
        workers=config.workers,
        max_failure_share=1.0,
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """Responses to one problem, scored by both rules."""

    group: RolloutGroup  # by the rule that the figures are by
    other: RolloutGroup | None  # by the other one, if there is one


class Judges:
    """Our rule and, where the benchmark has one, that of its own script. Use it as a context manager.

    All ranks of `world` must call `judge` together. Raises ScoringError as `Scorer` does.
    """

    def __init__(
        self, config: ScoringConfig, benchmark: Benchmark | None, headline: Rule, world: World | None = None
    ) -> None:
        self._official_rule = benchmark.official if benchmark else ""
        self.scoring = rule_scoring(config, benchmark)
        self.ours = Scorer(self.scoring, world)
        self._official: Scorer | None = None
        if self._official_rule:
            self._official = Scorer(official_scoring(config, self._official_rule), world, official=True)
        self.headline: Rule = headline if self._official else OURS
        if headline != self.headline:
            log.warning("%s has no official rule beside ours: its figures are by ours", benchmark and benchmark.name)

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        if self._official is not None:
            self._official.close()

    @property
    def harness_rule(self) -> str:
        """What the harness says that the figures are by: "ours", or the name of the official rule."""
        return self._official_rule if self.headline == OFFICIAL else OURS

    def rules(self, problem: Problem) -> tuple[str, str]:
        """Name of the rule that the figures are by, and of the other one, "" if there is none."""
        ours = self.ours.rule(problem)
        return (self._official_rule, ours) if self.headline == OFFICIAL else (ours, self._official_rule)

    def judge(self, groups: Sequence[RolloutGroup], max_tokens: int) -> list[Judged]:
        """The groups with both verdicts, in their order. Arguments as those of `Scorer.score`."""
        ours = self.ours.score(groups, max_tokens)
        if self._official is None:
            return [Judged(group, None) for group in ours]
        pairs = zip(ours, self._official.score(groups, max_tokens), strict=True)
        return [Judged(b, a) if self.headline == OFFICIAL else Judged(a, b) for a, b in pairs]
