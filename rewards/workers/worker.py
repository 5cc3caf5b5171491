"""Score responses one by one and keep what goes wrong with one away from the others.

This is what runs in a worker process. It imports neither torch nor sapo_vl, so a worker starts in a fraction
of a second. The trainer calls `score_one` directly for the rewards listed in rewards.IN_PROCESS.
"""

from __future__ import annotations

import functools
import importlib
import math
import numbers
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rewards import PRELOAD, REWARDS, RewardFn, RewardInput, RewardOutput, Unscorable
from rewards.base import needs_images, signature_problem
from rewards.official import OFFICIAL
from rewards.weighted import OWN, weighted
from rewards.workers.custom import CustomRewardError, CustomSource, load_custom

_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays the same for every response of a run."""

    weights: Mapping[str, float]  # "accuracy" or a reward's name -> weight in the sum
    params: Mapping[str, Mapping[str, Any]]  # reward's name -> keyword arguments
    timeout_s: float  # seconds a response may take in a worker
    custom: CustomSource | None = None


class Job(NamedTuple):
    """One response to score."""

    own: str  # name of the problem's own reward
    input: RewardInput


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job; `status` is a value of sapo_vl.types.ScoreStatus."""

    status: str
    score: float | None = None  # None unless the status is "scored"
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""  # one line: the reward's reason if scored, else what went wrong


def score_one(plan: Plan, job: Job, caught: type[BaseException] = Exception) -> Result:
    """Score one response. `caught` is what a failing reward may raise without failing the caller."""
    try:
        names = {name: job.own if name == OWN else name for name in plan.weights}
        terms = {name: _bound(plan, reward) for name, reward in names.items()}
        output = weighted(job.input, plan.weights, terms)
    except Unscorable as reason:
        return Result("unscorable", detail=_one_line(reason))
    except caught as error:
        return Result("error", detail=describe(error))
    return Result("scored", output.score, output.parts, output.reason)


def score_chunk(plan: Plan, jobs: Sequence[Job], budget_s: float) -> list[Result]:
    """Score jobs in order until `budget_s` seconds are used up; always at least one. Runs in a worker."""
    start, results = time.monotonic(), []
    for job in jobs:
        _bound_cpu(plan.timeout_s)
        results.append(score_one(plan, job, caught=BaseException))
        if time.monotonic() - start > budget_s:
            break
    return results


def inspect_custom(source: CustomSource, params: Mapping[str, Any]) -> tuple[str, bool]:
    """Load the custom reward: (what is wrong with it or "", whether it needs images). Runs in a worker."""
    try:
        function = load_custom(source)
    except CustomRewardError as error:
        return str(error), False
    except BaseException as error:
        return f"importing {source.path} failed: {describe(error)}. Correct the file and start again.", False
    problem = signature_problem(function, params)
    if problem:
        problem = (
            f"{source.path}: {source.function}(x, **params) cannot be called with params {dict(params)}: "
            f"{problem}. Write it as `def {source.function}(x: RewardInput, ...) -> RewardOutput` and name "
            f"its other arguments in rewards.params.{source.name}."
        )
        return problem, False
    try:
        return "", needs_images(function, params)
    except Exception as error:
        return f"{source.path}: needs_images({dict(params)}) of {source.function} failed: {describe(error)}", False


def start_worker(custom: CustomSource | None, preload: Sequence[str] = ()) -> None:
    """Initialise a worker process.

    What the rewards `preload` import (SymPy takes more than a second) and the custom reward are loaded here,
    once per worker and not against the time limit of a response. An error is not lost: the call that needs the
    reward loads it again and reports.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python-level handler would never run inside a C loop
    for name in preload:
        try:
            importlib.import_module(PRELOAD[name])
        except ImportError as error:
            print(f"reward {name}: {describe(error)}", file=sys.stderr, flush=True)
    if custom is not None:
        inspect_custom(custom, {})


def describe(error: BaseException) -> str:
    """One line: type, message and the place it was raised at."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_one_line(error)}{place}"


def _bound_cpu(timeout_s: float) -> None:
    """Let the kernel end this process should it loop after the trainer, which enforces the limit, was killed.

    It is in CPU seconds of all threads: `timeout_s` on every core, so it never comes first.
    """
    bound = math.ceil(time.process_time() + (timeout_s + 1) * len(os.sched_getaffinity(0)))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _bound(plan: Plan, name: str) -> Callable[[RewardInput], RewardOutput]:
    custom = plan.custom
    known = REWARDS if name in REWARDS else OFFICIAL
    reward = load_custom(custom) if custom is not None and custom.name == name else known[name]
    return functools.partial(_checked, reward, name, plan.params.get(name, {}))


def _checked(reward: RewardFn, name: str, params: Mapping[str, Any], x: RewardInput) -> RewardOutput:
    """Call a reward and make plain finite floats of what it returns."""
    output = reward(x, **params)
    if not isinstance(output, RewardOutput):
        raise TypeError(f"reward {name!r} must return a RewardOutput, got {type(output).__name__}")
    parts = {str(key): _finite(part, f"part {key!r} of reward {name!r}") for key, part in output.parts.items()}
    return RewardOutput(_finite(output.score, f"the score of reward {name!r}"), parts, _one_line(output.reason))


def _finite(value: Any, what: str) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {float(value)}")
    return float(value)


def _one_line(message: object) -> str:
    try:
        text = str(message)
    except Exception:  # the message comes from code we do not own
        text = "(its message cannot be printed)"
    return " ".join(text.split())[:_DETAIL_CHARS]
