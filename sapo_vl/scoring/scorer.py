"""Give every response its reward, or the reason why it has none.

A problem's own reward ("accuracy") is looked up by its task or named by the data set; the config adds terms
such as the format and weighs them. A response that cannot be scored gets reward None, never 0: it takes no
part in the update and is counted.

The rewards of rewards.IN_PROCESS run in the trainer's process, because they end in time proportional to the
length of the response, which the token limit bounds: they search strings, use expressions without nested
repetition, and parse short numbers. Every other reward runs in worker processes with a time limit; these
start on first use. Measured for the former: 10 ms of CPU time for 256 responses of 120 tokens.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

import rewards.workers.worker as worker
from rewards import IN_PROCESS, REWARDS, RewardInput
from rewards.base import needs_images, signature_problem
from rewards.judging.settings import OF_PROBLEM, UNREAD
from rewards.official import OFFICIAL, OFFICIAL_IN_PROCESS
from rewards.weighted import OWN
from rewards.workers.custom import CustomRewardError, CustomSource, read_custom
from rewards.workers.pool import RewardPool, inspect_in_worker
from rewards.workers.preflight import setting_problem
from sapo_vl.distributed import World
from sapo_vl.scoring.early import EarlyResults
from sapo_vl.scoring.failure_watch import Attempt, FailureWatch, ScoringStopped
from sapo_vl.scoring.judging import JUDGE, JudgeUnfit, JudgeWatch, question_of
from sapo_vl.strict import Strict
from sapo_vl.types import Finish, Problem, Rollout, RolloutGroup, ScoreStatus

ANY_TASK = "*"  # key of by_task that stands for every task without a line of its own


class ScoringConfig(Strict):
    """How responses are scored."""

    combine: dict[str, float] = Field(default_factory=lambda: {"accuracy": 0.9, "format": 0.1})
    """Weights of the terms. "accuracy" is the problem's own reward; others ("format", "overlong", "language",
    ...) are names of rewards. Penalties score below 0, so they take a positive weight; weight 0 only logs."""
    by_task: dict[str, str] = Field(default_factory=dict)
    """Task -> name of its own reward; goes before what the data set says. "*" stands for all other tasks."""
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name of a reward -> its keyword arguments, e.g. {"overlong": {"buffer": 64}}."""
    path: str = ""
    """A reward of yours outside the repository: "path/to/my_reward.py:function". If neither by_task nor combine names
    it (see path_name), it is the own reward of every task that by_task does not give to another one."""
    path_name: str = "custom"
    """The name under which it can be used in combine, by_task, params and the data set."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds a response may take to score in a worker before the worker is killed."""
    workers: int = Field(default=2, ge=1)
    """Worker processes per trainer process, for rewards that are not built in."""
    max_failure_share: float = Field(default=0.5, ge=0, le=1)
    """The run stops when a larger share of the latest responses, over all ranks, could not be scored; all together,
    or those of one reward."""


class ScoringError(ValueError):
    """A reward that is named does not exist or cannot be loaded. The message says which and what to set."""


class Scorer:
    """Scores rollouts under a ScoringConfig. Use it as a context manager, or call `close`.

    Failures are counted over all ranks of `world` (default: this process alone), in the order of the ranks, so
    that the same batch stops a run on any number of ranks or on none.

    Args:
        official: the published rules of benchmarks (rewards.official) can be named too. Evaluation alone may.

    Raises:
        ScoringError: the config names a reward or an argument that does not exist, or a file that cannot be
            read.
    """

    def __init__(self, config: ScoringConfig, world: World | None = None, *, official: bool = False):
        self._config = config
        self._official = OFFICIAL.keys() if official else frozenset[str]()
        self._world = world or World.alone()
        try:
            custom = read_custom(config.path, config.path_name) if config.path else None
        except CustomRewardError as error:
            raise ScoringError(str(error)) from error
        self._plan = worker.Plan(config.combine, config.params, config.timeout_s, custom)
        self._counts: Counter[ScoreStatus] = Counter()
        self._watch = FailureWatch(self._world, config.max_failure_share)
        self._pool: RewardPool | None = None
        self._pool_lock = threading.Lock()  # one list of jobs at a time
        self._early = EarlyResults(self._run_in_workers)
        named = set(config.combine) | set(config.by_task.values())
        # A file of yours that no key names can only be meant for everything.
        self._custom_for_all = custom.name if custom is not None and custom.name not in named else ""
        self._custom_needs_images: bool | None = None  # None until the custom reward was loaded in a worker
        self._check_config(custom)
        self._judge = JudgeWatch(config.params, self._world)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes."""
        self._early.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @property
    def counts(self) -> dict[ScoreStatus, int]:
        """How many responses of this rank ended in each status since the start."""
        return {status: self._counts[status] for status in ScoreStatus}

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the counts. JSON-serialisable."""
        return {str(status): count for status, count in self.counts.items()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._counts = Counter({ScoreStatus(status): count for status, count in state.items()})

    @property
    def failure_shares(self) -> dict[str, float]:
        """Of the latest batch over all ranks: failed/{reward}/{status}, and failed/{reward}/n, its attempts."""
        return self._watch.shares

    @property
    def judge_metrics(self) -> dict[str, float]:
        """What the judge did for the latest batch, over all ranks; nothing without rewards.params.judge."""
        return dict(self._judge.metrics)

    @property
    def metrics(self) -> dict[str, float]:
        """failure_shares and judge_metrics in one."""
        return self.failure_shares | self.judge_metrics

    def check(self, pairs: Iterable[tuple[str, str]], dataset: str) -> None:
        """Make sure, before training, that every task has a reward, that the rewards which are used can run with
        their arguments on this machine, and that the custom reward can be loaded.

        Args:
            pairs: (task, reward) of the problems, the columns of a data set; repeats are fine.
            dataset: name of the data set, for messages.

        All ranks must call it together.

        Raises:
            ScoringError: naming the task, the data set and the keys to set, or what a reward lacks; also for a judge
                that cannot be reached or fails its canaries.
        """
        pairs = sorted(set(pairs))
        used = {name for task, reward in pairs for name in self._names(self._own(task, reward, dataset))}
        for name in sorted(used & REWARDS.keys()):
            problem = setting_problem(name, self._config.params.get(name, {}), self._config.timeout_s)
            if problem:
                raise ScoringError(f"{dataset}: {problem}")
        if self._plan.custom is not None:
            self._load_custom()
        if JUDGE in used:
            self._check_rules_of_judge(pairs, dataset)
            try:
                self._judge.check()
            except JudgeUnfit as error:
                raise ScoringError(f"{dataset}: {error}") from error

    def rule(self, problem: Problem) -> str:
        """Name of the problem's own reward. Raises ScoringError if it has none."""
        return self._own(problem.task, problem.reward, f"problem {problem.id}")

    def begin(self, group: RolloutGroup, max_tokens: int) -> None:
        """Let the workers begin with a group that `score` will be asked for later, under the same limit. What is scored
        in this process is left to `score`. From any thread."""
        jobs = [
            (rollout, self._job(group.prompt.problem, rollout, max_tokens))
            for rollout in group.rollouts
            if rollout.finish is not Finish.FAILED
        ]
        if slow := [(rollout, job) for rollout, job in jobs if not self._is_cheap(job)]:
            self._early.add(slow)

    def score(self, groups: Sequence[RolloutGroup], max_tokens: int) -> list[RolloutGroup]:
        """The groups with reward, parts, score_status and score_detail filled in; order is kept.

        All ranks must call it together.

        Args:
            groups: their rollouts need `text`. A rollout the engine failed on is not scored.
            max_tokens: the limit the responses were sampled under, in tokens.

        Raises:
            ScoringStopped: on all ranks, if more than max_failure_share of the latest responses could not be scored,
                all together or by one reward; or the judge called too many wrong canaries correct.
            ScoringError: a problem's task has no reward (`check` finds this before training).
        """
        rollouts = [(group.prompt.problem, rollout) for group in groups for rollout in group.rollouts]
        scorable = [i for i, (_, rollout) in enumerate(rollouts) if rollout.finish is not Finish.FAILED]
        results = [
            worker.Result("unscorable", detail=r.score_detail or "the rollout engine returned no response")
            for _, r in rollouts
        ]
        jobs = [self._job(*rollouts[i], max_tokens) for i in scorable]
        begun = [self._early.take(rollouts[i][1]) for i in scorable]
        rest = iter(self._run([job for job, result in zip(jobs, begun, strict=True) if result is None]))
        for i, result in zip(scorable, begun, strict=True):
            results[i] = next(rest) if result is None else result
        scored = iter([_with_result(r, result) for (_, r), result in zip(rollouts, results, strict=True)])
        self._counts.update(ScoreStatus(result.status) for result in results)
        self._watch.add(
            [
                Attempt(job.own, ScoreStatus(results[i].status), results[i].detail)
                for i, job in zip(scorable, jobs, strict=True)
            ]
        )
        try:
            self._judge.after_batch([results[i] for i in scorable])
        except JudgeUnfit as error:
            raise ScoringStopped(str(error)) from error
        return [dataclasses.replace(g, rollouts=tuple(next(scored) for _ in g.rollouts)) for g in groups]

    def _run(self, jobs: Sequence[worker.Job]) -> list[worker.Result]:
        """Score cheap jobs here and the others in the workers; results in the order of the jobs."""
        in_pool = [i for i, job in enumerate(jobs) if not self._is_cheap(job)]
        pooled = self._run_in_workers([jobs[i] for i in in_pool]) if in_pool else []
        by_index = dict(zip(in_pool, pooled, strict=True))
        return [by_index.get(i) or worker.score_one(self._plan, job) for i, job in enumerate(jobs)]

    def _is_cheap(self, job: worker.Job) -> bool:
        return self._names(job.own) <= IN_PROCESS | OFFICIAL_IN_PROCESS

    def _run_in_workers(self, jobs: Sequence[worker.Job]) -> list[worker.Result]:
        with self._pool_lock:
            return self._workers().run(jobs)

    def _job(self, problem: Problem, rollout: Rollout, max_tokens: int) -> worker.Job:
        own = self.rule(problem)
        return worker.Job(
            own,
            RewardInput(
                text=rollout.text,
                num_tokens=len(rollout.response_ids),
                max_tokens=max_tokens,
                finish=rollout.finish.value,
                token_ids=tuple(rollout.response_ids.tolist()),
                id=problem.id,
                task=problem.task,
                reward=problem.reward,
                answer=problem.answer,
                question=question_of(problem),
                meta=problem.meta,
                images=tuple(problem.images) if any(map(self.needs_images, self._names(own))) else (),
            ),
        )

    def _own(self, task: str, reward: str, where: str) -> str:
        """Name of the reward of a task."""
        by_task = self._config.by_task
        name = by_task.get(task) or by_task.get(ANY_TASK) or self._custom_for_all or reward
        if not name:
            raise ScoringError(
                f"{where}: task {task!r} has no reward. Set rewards.by_task.{task}=NAME, or fill the column "
                f"`reward` of the data set. Known rewards: {self._known_text()}"
            )
        if name not in self._known():
            raise ScoringError(
                f"{where}: the reward {name!r} of task {task!r} does not exist. Known rewards: "
                f"{self._known_text()}. Set rewards.by_task.{task} to one of them, or "
                f"rewards.path=my_reward.py:function together with rewards.path_name={name}"
            )
        return name

    def _names(self, own: str) -> set[str]:
        return {own if name == OWN else name for name in self._config.combine}

    def _known(self) -> set[str]:
        return set(REWARDS) | self._official | ({self._plan.custom.name} if self._plan.custom else set())

    def _known_text(self) -> str:
        return ", ".join(sorted(self._known()))

    def needs_images(self, name: str) -> bool:
        """Whether the reward of this name looks at the images."""
        if name in self._official:
            return False
        if name not in REWARDS:
            return self._load_custom()
        return needs_images(REWARDS[name], self._config.params.get(name, {}))

    def _check_rules_of_judge(self, pairs: Iterable[tuple[str, str]], dataset: str) -> None:
        """Raises ScoringError for problems whose own rule the judge cannot follow, if that is the one it shall."""
        if self._config.params.get(JUDGE, {}).get("rule") != OF_PROBLEM:
            return
        for task, reward in pairs:
            if JUDGE in self._names(self._own(task, reward, dataset)) and reward not in UNREAD:
                raise ScoringError(
                    f"{dataset}: the judge cannot follow the rule {reward!r} that problems of task {task!r} name "
                    f"(rewards.params.judge.rule={OF_PROBLEM}); set rule to one of {', '.join(sorted(UNREAD))}"
                )

    def _workers(self) -> RewardPool:
        if self._pool is None:
            self._pool = RewardPool(self._plan, self._config.workers)
        return self._pool

    def _load_custom(self) -> bool:
        """Load the custom reward in a process of its own, once; whether it needs images."""
        if self._custom_needs_images is None:
            try:
                self._custom_needs_images = inspect_in_worker(self._plan)
            except CustomRewardError as error:
                raise ScoringError(str(error)) from error
        return self._custom_needs_images

    def _check_config(self, custom: CustomSource | None) -> None:
        config = self._config
        if custom is not None and custom.name in {*REWARDS, OWN}:
            raise ScoringError(f"rewards.path_name={custom.name!r} is a built-in name; choose another")
        if not config.combine:
            raise ScoringError("rewards.combine is empty; it needs at least one term, e.g. {accuracy: 1.0}")
        for key, names in (
            ("combine", set(config.combine) - {OWN}),
            ("by_task", set(config.by_task.values())),
            ("params", set(config.params)),
        ):
            if unknown := names - self._known():
                raise ScoringError(
                    f"rewards.{key} names the unknown reward {min(unknown)!r}. Known: {self._known_text()}"
                )
        for name, params in config.params.items():
            if name in REWARDS and (problem := signature_problem(REWARDS[name], params)):
                raise ScoringError(f"rewards.params.{name}={params} does not fit the reward: {problem}")


def metrics_of_step(batches: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One set of `Scorer.metrics` from those of all batches that were scored in a step.

    Counts are added, shares are of the added attempts, and rates of the judge are the latest.
    """
    if len(batches) == 1:
        return dict(batches[0])
    out: dict[str, float] = {}
    for name in dict.fromkeys(name for values in batches for name in values):
        having = [values for values in batches if name in values]
        attempts = f"{name.rpartition('/')[0]}/n"
        if name.startswith("failed/") and name != attempts:
            out[name] = sum(v[name] * v[attempts] for v in having) / sum(v[attempts] for v in having)
        else:
            out[name] = having[-1][name] if name.endswith("_rate") else sum(v[name] for v in having)
    return out


def _with_result(rollout: Rollout, result: worker.Result) -> Rollout:
    status = ScoreStatus(result.status)
    parts: Mapping[str, float] = result.parts
    return dataclasses.replace(
        rollout, reward=result.score, parts=parts, score_status=status, score_detail=result.detail
    )
