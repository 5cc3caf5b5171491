"""Scoring as a benchmark wants it, from the scoring that a run trains on."""

from __future__ import annotations

from sapo_vl.benchmarks import Benchmark
from sapo_vl.scoring.scorer import ANY_TASK, ScoringConfig


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
