"""Rewards that workers begin with while other responses are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rewards.workers.worker import Job, Result
from sapo_vl.types import Rollout


class EarlyResults:
    """Jobs of responses that are there already, on their way to the workers, and what became of them.

    One thread hands them to `run`, which scores a list of jobs; what has come in meanwhile goes together. What a job
    gives does not depend on when and with which others it runs, so nothing changes but when the workers begin.
    """

    def __init__(self, run: Callable[[Sequence[Job]], list[Result]]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._waiting: list[tuple[Job, Future[Result]]] = []
        self._known: dict[int, tuple[Rollout, Future[Result]]] = {}  # by the response's id; it is kept alive with it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="early_rewards")

    def add(self, jobs: Sequence[tuple[Rollout, Job]]) -> None:
        """From any thread. Returns at once."""
        with self._lock:
            for rollout, job in jobs:
                result: Future[Result] = Future()
                self._waiting.append((job, result))
                self._known[id(rollout)] = (rollout, result)
        self._thread.submit(self._work)

    def take(self, rollout: Rollout) -> Result | None:
        """The result for this very response, waited for; None if it was never added. Raises what `run` raised."""
        with self._lock:
            found = self._known.pop(id(rollout), None)
        return None if found is None else found[1].result()

    def close(self) -> None:
        """Gives up what has not begun; waits for what has."""
        with self._lock:
            self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _work(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            results = self._run([job for job, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
