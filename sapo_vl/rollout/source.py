"""Batches of rollouts for the training loop, sampled when asked for or ahead of time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sapo_vl.rollout.base import RolloutEngine, SamplingParams
from sapo_vl.types import Finish, Prompt, RolloutGroup


class StaleRollouts(RuntimeError):
    """Rollouts of weights that nobody announced. Training on them unnoticed would be off-policy without bound."""


@dataclass(frozen=True, slots=True)
class _Pending:
    step: int
    groups: Future[list[RolloutGroup]]
    feed_state: dict[str, Any]  # of the feed once this batch was drawn


class RolloutSource:
    """Step by step, the rollouts to train on.

    The weights have version k after k steps, and step k (from 0) trains weights of version k. With `staleness` s
    the batch of step k is asked for at step k - s, so that sampling runs beside training: its rollouts have a
    version in k - s ... k. s = 0 samples when asked, in the caller's thread.

    While a batch is being sampled ahead, the engine may be used by others only inside `exclusive()`.
    """

    def __init__(
        self,
        draw: Callable[[], list[Prompt]],
        draw_state: Callable[[], dict[str, Any]],
        engine: RolloutEngine,
        params: Callable[[int], SamplingParams],
        *,
        staleness: int,
        steps: range,
    ) -> None:
        self._draw, self._draw_state, self._engine, self._params = draw, draw_state, engine, params
        self._staleness, self._steps = staleness, steps
        self._asked = steps.start  # the next step to ask rollouts for
        self._step = steps.start  # the next step to hand rollouts out for
        self._pending: deque[_Pending] = deque()
        self._state: dict[str, Any] = draw_state()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout") if staleness else None
        self._engine_lock, self._turnstile = threading.Lock(), threading.Lock()

    def next(self) -> list[RolloutGroup]:
        """The groups of the next step. Raises StaleRollouts, or what the engine raised while sampling them."""
        if not self._pending:
            self._ask()
        batch = self._pending.popleft()
        groups = batch.groups.result()
        check_versions(groups, batch.step, self._staleness)
        self._state, self._step = batch.feed_state, batch.step + 1
        while len(self._pending) < self._staleness and self._asked < self._steps.stop:
            self._ask()
        return groups

    def state_dict(self) -> dict[str, Any]:
        """State of the feed after the batch handed out last: what was sampled ahead is drawn again on a resume."""
        return self._state

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nothing is sampled ahead inside: for syncs, checks and evaluations. Waits for a batch on its way."""
        with self._turnstile, self._engine_lock:
            yield

    def close(self) -> None:
        """Waits for a batch on its way and drops it."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _ask(self) -> None:
        step, prompts = self._asked, self._draw()
        self._asked += 1
        params = self._params(step)
        if self._thread is not None:
            groups = self._thread.submit(self._sample, prompts, params)
        else:
            groups = Future()
            groups.set_result(self._engine.generate(prompts, params))
        self._pending.append(_Pending(step, groups, self._draw_state()))

    def _sample(self, prompts: list[Prompt], params: SamplingParams) -> list[RolloutGroup]:
        # Whoever waits in `exclusive` holds the turnstile and so goes before the next batch.
        with self._turnstile:
            self._engine_lock.acquire()
        try:
            return self._engine.generate(prompts, params)
        finally:
            self._engine_lock.release()


def check_versions(groups: Sequence[RolloutGroup], step: int, staleness: int) -> None:
    """Raises StaleRollouts unless every usable rollout comes from a version in step - staleness ... step."""
    for group in groups:
        for rollout in group.rollouts:
            if rollout.finish is Finish.FAILED or step - staleness <= rollout.weight_version <= step:
                continue
            raise StaleRollouts(
                f"step {step} got a rollout of problem {group.prompt.problem.id!r} from weights of version "
                f"{rollout.weight_version}; allowed are {max(0, step - staleness)} to {step} "
                f"(rollout.staleness={staleness}). The engine did not take the last weights over"
            )
