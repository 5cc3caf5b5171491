"""Batches of rollouts for the training loop, sampled when asked for or ahead of time."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sapo_vl.distributed import World
from sapo_vl.rollout.base import OnGroup, RolloutEngine, SamplingParams
from sapo_vl.rollout.saved import pack_groups, unpack_groups
from sapo_vl.types import Finish, Prompt, RolloutGroup

log = logging.getLogger(__name__)
TURN = 2**32  # between the seeds of two turns of a step; those of two steps are closer together


class StaleRollouts(RuntimeError):
    """Rollouts of weights that nobody announced. Training on them unnoticed would be off-policy without bound."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    groups: Future[list[RolloutGroup]]
    params: SamplingParams
    before: dict[str, Any]  # state of the feed before this batch was drawn


class RolloutSource:
    """Step by step, the rollouts to train on.

    The weights have version k after k steps, and step k (from 0) trains weights of version k. With `staleness` 1 the
    batch of step k is sampled with the weights of version k - 1, once the batch of step k - 1 has been handed out;
    with 0 when it is asked for, with version k. An engine that can work `beside` the trainer does so in a thread while
    step k - 1 trains; another one works in turn, before `next` returns, which gains no time. A sync waits for the batch
    on its way, so which weights made which rollout does not depend on how fast anything was. That is why staleness ends
    at 1: more would overlap nothing more.

    A checkpoint has the batch that was sampled ahead, and a resumed run is given it as `ahead`: its weights are gone.

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
        beside: bool,
        world: World,
        ahead: Mapping[str, Any] | None = None,
        on_group: OnGroup | None = None,
    ) -> None:
        """`on_group` is told of the groups of a step as they are finished; not of those that a checkpoint has."""
        self._on_group = on_group
        self._draw, self._draw_state, self._engine, self._params = draw, draw_state, engine, params
        self._staleness, self._steps, self._world, self._saved = staleness, steps, world, ahead
        self._ahead: _Ahead | None = None
        self._next = steps.start  # the step to hand rollouts out for
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout") if staleness and beside else None

    def next(self) -> list[RolloutGroup]:
        """The groups of the next step. Raises StaleRollouts, or what the engine raised while sampling them."""
        step = self._next
        groups = self._ahead.groups.result() if self._ahead is not None else self._now(step)
        check_versions(groups, step, self._staleness)
        self._next, self._ahead = step + 1, None
        if self._staleness and step + 1 < self._steps.stop:
            before, prompts, params = self._draw_state(), self._draw(), self._params(step + 1)
            self._ahead = _Ahead(self._started(prompts, params), params, before)
        else:
            self._engine.rest()  # nothing was sampled where this batch was sampled ahead, and updates need the memory
        return groups

    def more(self, prompts: Sequence[Prompt], turn: int) -> list[RolloutGroup]:
        """Groups for further prompts of the step handed out last, by the current weights; `turn` counts from 1.

        All ranks together, with equally many prompts on each. The same prompt has other responses in another turn.
        """
        assert turn > 0 and self._ahead is None, "what is sampled ahead is of other weights"
        step = self._next - 1
        params = self._params(step)
        params = dataclasses.replace(params, seed=params.seed + turn * TURN)
        groups = self._engine.generate(prompts, params, self._on_group)
        check_versions(groups, step, self._staleness)
        return groups

    def _now(self, step: int) -> list[RolloutGroup]:
        """The groups of a step that nothing was sampled for ahead, or those that a checkpoint has."""
        prompts, params = self._draw(), self._params(step)
        if self._staleness and step:
            groups = _restored(self._saved, prompts, params)
            if not self._world.any(groups is None):
                assert groups is not None
                return groups
            if self._world.is_main:
                log.warning(
                    "step %d: the checkpoint has no batch that was sampled ahead for these settings; it is sampled "
                    "with the current weights, not those of the step before",
                    step + 1,
                )
        return self._engine.generate(prompts, params, self._on_group)

    def _started(self, prompts: list[Prompt], params: SamplingParams) -> Future[list[RolloutGroup]]:
        if self._thread is not None:
            return self._thread.submit(self._engine.generate, prompts, params, self._on_group)
        done: Future[list[RolloutGroup]] = Future()
        done.set_result(self._engine.generate(prompts, params, self._on_group))
        return done

    def state_dict(self) -> dict[str, Any]:
        """JSON-like: the state of the feed after the batch handed out last, and as "ahead" the batch sampled since.

        Waits for the batch on its way. If that one failed it is left out: a resumed run samples it then.
        """
        if self._ahead is None:
            return self._draw_state()
        state = dict(self._ahead.before)
        if self._ahead.groups.exception() is None:
            groups = pack_groups(self._ahead.groups.result())
            state["ahead"] = {"params": dataclasses.asdict(self._ahead.params), "groups": groups}
        return state

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


def dealt_anew(states: Sequence[Mapping[str, Any]], world: World) -> dict[str, Any]:
    """What this rank goes on from, of what another number of ranks saved (`RolloutSource.state_dict`), in their order.

    The feed is at one place on all ranks. The shares of a batch that was sampled ahead, laid end to end, are the batch.
    """
    state = dict(states[0])
    ahead = [other.get("ahead") for other in states]
    state.pop("ahead", None)
    if all(share is not None for share in ahead):
        groups = [group for share in ahead if share is not None for group in share["groups"]]
        first, last = (len(groups) * rank // world.size for rank in (world.rank, world.rank + 1))
        state["ahead"] = {"params": states[0]["ahead"]["params"], "groups": groups[first:last]}
    return state


def _restored(
    saved: Mapping[str, Any] | None, prompts: Sequence[Prompt], params: SamplingParams
) -> list[RolloutGroup] | None:
    """The batch of a checkpoint; None if there is none, or if it answers other prompts or under other settings."""
    if saved is None or saved["params"] != dataclasses.asdict(params):
        return None
    return unpack_groups(saved["groups"], prompts)


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
