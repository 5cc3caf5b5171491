"""Run rewards in worker processes that can be killed: what one response does costs that response only.

Responses travel in chunks, because a call to a worker costs more than a cheap reward. A chunk whose worker
dies or runs out of time is run again one response at a time, which tells which of them did it. So a response
may be scored twice.

A worker's death that this process, too busy, notices only after the time limit of its response counts as `timeout`.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from pebble import ProcessExpired, ProcessPool

from rewards import PRELOAD
from rewards.weighted import OWN
from rewards.workers.custom import CustomRewardError
from rewards.workers.worker import Job, Plan, Result, inspect_custom, score_chunk, start_worker

CHUNK = 16  # responses per call
CHUNK_BUDGET_S = 0.5  # a worker hands the rest of a chunk back after this long: slow rewards spread
START_LIMIT_S = 120.0  # for a worker to start, imports of the custom reward included
_LOOK_S = 1.0  # how often a wait looks whether pebble's own threads are alive


class WorkersStuck(RuntimeError):
    """The worker processes do not get as far as taking work."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The jobs of one `run` and what is known of them; indices point into `jobs`."""

    jobs: Sequence[Job]
    results: dict[int, Result] = field(default_factory=dict)
    suspects: list[int] = field(default_factory=list)  # were out when the whole pool broke


class RewardPool:
    """`workers` processes that score under `plan`, which also sets the time limit of a response.

    Processes are spawned, not forked: the trainer's threads (torch, gloo) make a fork unsafe. A spawned
    worker imports the main module of the run again unless that is a package's `__main__`, as in `python -m
    sapo_vl`. Use it as a context manager, or call `close`.
    """

    def __init__(self, plan: Plan, workers: int):
        self._plan, self._workers = plan, workers
        self._preload: frozenset[str] = frozenset()  # rewards whose imports the workers start with
        self._pool = _new_pool(plan, workers)

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, also busy ones, and wait until they are gone."""
        self._pool.stop()
        self._pool.join()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Score `jobs`; results in their order, whatever the order of completion.

        Raises:
            WorkersStuck: the workers cannot start.
        """
        batch = _Batch(jobs)
        self._prepare(jobs)
        self._finish(batch, [list(range(i, min(i + CHUNK, len(jobs)))) for i in range(0, len(jobs), CHUNK)])
        for i in batch.suspects:  # with nothing else running, whoever breaks the pool has shown itself
            alone = _Batch([jobs[i]])
            self._finish(alone, [[0]])
            batch.results[i] = alone.results.get(0, Result("crash", detail="the worker process died"))
        return [batch.results[i] for i in range(len(jobs))]

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Start the workers anew if they have not imported what `jobs` need; a response has no time for that."""
        used = {job.own if name == OWN else name for job in jobs for name in self._plan.weights}
        if "judge" in used:  # it calls its rule, or that of the problem
            used |= {str(self._plan.params.get("judge", {}).get("rule")), *(job.input.reward for job in jobs)}
        names = frozenset(PRELOAD) & used
        if names <= self._preload:
            return
        self._preload |= names
        self.close()
        self._pool = _new_pool(self._plan, self._workers, self._preload)

    def _finish(self, batch: _Batch, chunks: list[list[int]]) -> None:
        """Run chunks until each of their jobs has a result or is a suspect."""
        while chunks:
            self._repair()
            calls: dict[Future, list[int]] = {}
            for chunk in chunks:
                try:
                    calls[self._schedule([batch.jobs[i] for i in chunk])] = chunk
                except RuntimeError:  # pebble takes no work once its pool is broken
                    batch.suspects.extend(chunk)
            chunks = []
            for call in self._as_completed(set(calls)):
                chunks += self._collect(call, calls.pop(call), batch)
            batch.suspects.extend(i for chunk in calls.values() for i in chunk)

    def _as_completed(self, calls: set[Future]) -> list[Future]:
        """Wait for the calls; all of them, or those that ended before the pool broke."""
        ended: list[Future] = []
        limit, last = START_LIMIT_S + CHUNK_BUDGET_S + self._plan.timeout_s, time.monotonic()
        while calls:
            done, calls = wait(calls, _LOOK_S, FIRST_COMPLETED)
            if done:
                ended += done
                last = time.monotonic()
            elif not self._pool.active:
                break
            elif time.monotonic() - last > limit:
                raise WorkersStuck(
                    f"no worker process of the rewards took work for {limit:.0f} s: they hang while starting"
                )
        return ended

    def _schedule(self, jobs: list[Job]) -> Future:
        limit = self._plan.timeout_s if len(jobs) == 1 else CHUNK_BUDGET_S + self._plan.timeout_s
        return self._pool.schedule(score_chunk, args=(self._plan, jobs, CHUNK_BUDGET_S), timeout=limit)

    def _collect(self, call: Future, chunk: list[int], batch: _Batch) -> list[list[int]]:
        """Take one ended call in; the chunks that have to run again."""
        error = call.exception()
        if error is None:
            results: list[Result] = call.result()
            batch.results.update(zip(chunk, results, strict=False))  # the worker may have stopped early
            rest = chunk[len(results) :]
            return [rest] if rest else []
        if isinstance(error, BrokenProcessPool):
            batch.suspects.extend(chunk)
            return []
        if not isinstance(error, TimeoutError | ProcessExpired):
            raise error
        if len(chunk) > 1:
            return [[i] for i in chunk]
        batch.results[chunk[0]] = (
            Result("timeout", detail=f"no score within {self._plan.timeout_s:g} s")
            if isinstance(error, TimeoutError)
            else Result("crash", detail=f"the worker process died ({_exit_reason(error.exitcode)})")
        )
        return []

    def _repair(self) -> None:
        """Replace a broken pool, for example after an idle worker was killed by the system."""
        if not self._pool.active:
            self.close()
            self._pool = _new_pool(self._plan, self._workers, self._preload)


def inspect_in_worker(plan: Plan) -> bool:
    """Load the plan's custom reward in a process of its own; whether it needs images.

    Raises:
        CustomRewardError: it cannot be loaded or called; the message names the file and the fix.
    """
    source = plan.custom
    assert source is not None
    pool = _new_pool(plan, 1)
    try:
        future = pool.schedule(inspect_custom, args=(source, plan.params.get(source.name, {})))
        problem, images = future.result(timeout=START_LIMIT_S)
    except (TimeoutError, ProcessExpired, BrokenProcessPool) as error:
        slow = isinstance(error, TimeoutError)
        what = f"takes more than {START_LIMIT_S:.0f} s" if slow else "kills the process"
        raise CustomRewardError(
            f"importing {source.path} in a worker process {what}. Its top level should only define things. "
            "If a script of yours started the run, keep that script's work under "
            "`if __name__ == '__main__':`, because workers import the script."
        ) from error
    finally:
        pool.stop()
        pool.join()
    if problem:
        raise CustomRewardError(problem)
    return images


def _new_pool(plan: Plan, workers: int, preload: frozenset[str] = frozenset()) -> ProcessPool:
    context: Any = multiprocessing.get_context("spawn")
    return ProcessPool(workers, initializer=start_worker, initargs=(plan.custom, sorted(preload)), context=context)


def _exit_reason(code: int) -> str:
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"
