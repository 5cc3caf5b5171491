"""Batches of rollouts for the training loop, sampled when asked for or ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sapo_vl.rollout.base import RolloutEngine, SamplingParams
from sapo_vl.types import Finish, Prompt, RolloutGroup


class StaleRollouts(RuntimeError):
    """Rollouts of weights that nobody announced. Training on them unnoticed would be off-policy without bound."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    groups: Future[list[RolloutGroup]]
    feed_state: dict[str, Any]  # of the feed once this batch was drawn


class RolloutSource:
    """Step by step, the rollouts to train on.

    The weights have version k after k steps, and step k (from 0) trains weights of version k. With `staleness` 1 the
    batch of step k is sampled while step k - 1 trains, with the weights of version k - 1; with 0 when it is asked for,
    in the caller's thread, with version k. A sync waits for the batch on its way, so which weights made which rollout
    does not depend on how fast anything was. That is why staleness ends at 1: more would overlap nothing more.

    While a batch is sampled ahead, the engine may be used by others only inside `exclusive()`.
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
        self._ahead: _Ahead | None = None
        self._next = steps.start  # the step to hand rollouts out for
        self._state: dict[str, Any] = draw_state()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout") if staleness else None

    def next(self) -> list[RolloutGroup]:
        """The groups of the next step. Raises StaleRollouts, or what the engine raised while sampling them."""
        step = self._next
        if self._ahead is not None:
            groups, self._state = self._ahead.groups.result(), self._ahead.feed_state
        else:
            groups = self._engine.generate(self._draw(), self._params(step))
            self._state = self._draw_state()
        check_versions(groups, step, self._staleness)
        self._next, self._ahead = step + 1, None
        if self._thread is not None and step + 1 < self._steps.stop:
            prompts = self._draw()
            future = self._thread.submit(self._engine.generate, prompts, self._params(step + 1))
            self._ahead = _Ahead(future, self._draw_state())
        return groups

    def state_dict(self) -> dict[str, Any]:
        """State of the feed after the batch handed out last: what was sampled ahead is drawn again on a resume."""
        return self._state

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For syncs, checks and evaluations: waits for the batch on its way. `next` must not be called inside."""
        if self._ahead is not None:
            wait([self._ahead.groups])
        yield

    def close(self) -> None:
        """Waits for a batch on its way and drops it."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


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
