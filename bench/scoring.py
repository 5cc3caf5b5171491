"""Scoring: responses a second by reward, and what rewards that never return cost a step.

The second table floods the workers: a share of the responses hangs in its reward for ever. The bound is arithmetic. A
chunk in which one hangs is given up after CHUNK_BUDGET_S + limit and run again one by one, where each that hangs takes
the limit. Each time a worker is killed and another one starts, which takes `start` seconds, measured first:

    (chunks * (CHUNK_BUDGET_S + limit + start) + hanging * (limit + start)) / workers
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards import RewardInput
from rewards.weighted import OWN
from rewards.workers.custom import read_custom
from rewards.workers.pool import CHUNK, CHUNK_BUDGET_S, RewardPool
from rewards.workers.worker import Job, Plan

# Reward -> (gold number i, meta); one of the rewards for each kind of work.
PROBLEMS: dict[str, tuple[Callable[[int], str], dict[str, Any]]] = {
    "box": (lambda i: f"{i} 0 {i + 1} 1", {}),
    "choice": (lambda i: f"option {i % 26}", {"choices": [f"option {i}" for i in range(26)]}),
    "list": (lambda i: f"red, blue, {i}", {}),
    "math": (lambda i: f"\\frac{{{2 * i + 1}}}{{2}}\\sqrt{{3}}", {}),
    "number": (str, {}),
}

HANGING = """
from rewards import RewardInput, RewardOutput

def reward(x: RewardInput) -> RewardOutput:
    while x.text == "hang":
        pass
    return RewardOutput(1.0)
"""


def job(name: str, text: str, answer: str = "", meta: dict[str, Any] | None = None) -> Job:
    x = RewardInput(text=text, num_tokens=1, max_tokens=1, finish="stop", answer=answer, meta=meta or {})
    return Job(name, x)


def throughput(responses: int, workers: int) -> None:
    """Right and wrong answers through the workers, which have started. No two problems are alike: nothing is cached."""
    print(f"responses a second, {responses} responses, {workers} workers")
    for name, (gold, meta) in sorted(PROBLEMS.items()):
        jobs = [
            job(name, f"<think> so </think> <answer>{gold(i + i % 2)}</answer>", gold(i), meta)
            for i in range(responses)
        ]
        with RewardPool(Plan({OWN: 1.0}, {}, timeout_s=10.0), workers) as pool:
            pool.run([job(name, "", gold(0), meta)] * 4 * CHUNK)
            started = time.perf_counter()
            results = pool.run(jobs)
            seconds = time.perf_counter() - started
        assert [r.score for r in results] == [1.0, 0.0] * (responses // 2), name
        print(f"  {name:10} {responses / seconds:8.0f}")


def flood(responses: int, share: float, limit: float, workers: int) -> None:
    """A batch without and one with hanging rewards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hanging.py"
        path.write_text(HANGING)
        plan = Plan({OWN: 1.0}, {}, timeout_s=limit, custom=read_custom(f"{path}:reward", "hanging"))
        hangs = [int(i * share) < int((i + 1) * share) for i in range(responses)]
        started = time.perf_counter()
        with RewardPool(plan, workers) as pool:
            pool.run([job("hanging", "fine")] * responses)
            start = time.perf_counter() - started
            started = time.perf_counter()
            pool.run([job("hanging", "fine")] * responses)
            fine = time.perf_counter() - started
            started = time.perf_counter()
            results = pool.run([job("hanging", "hang" if hang else "fine") for hang in hangs])
            seconds = time.perf_counter() - started
            after = pool.run([job("hanging", "fine")] * responses)
    expected = ["timeout" if hang else "scored" for hang in hangs]
    assert [r.status for r in results] == expected and {r.status for r in after} == {"scored"}
    chunks = -(-responses // CHUNK)
    bound = (chunks * (CHUNK_BUDGET_S + limit + start) + sum(hangs) * (limit + start)) / workers
    print(f"{share:.0%} of {responses} responses hang, limit {limit:g} s, {workers} workers, start {start:.2f} s")
    print(f"  none hangs {fine:.3f} s, flood {seconds:.1f} s, bound {bound:.1f} s, ratio {seconds / bound:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 5.0], help="seconds a response may take")
    args = parser.parse_args()
    throughput(args.responses, args.workers)
    for limit in args.limits:
        flood(64, 0.3, limit, args.workers)


if __name__ == "__main__":
    main()
