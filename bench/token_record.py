"""What log.save_tokens costs a step: every second step of one run keeps and writes the numbers of its tokens.

    python bench/token_record.py RUN [--steps 40] [key=value ...]

RUN is a run folder; its training starts anew from the model and data of its config, on one rank, in a temporary folder.
CPU seconds of a step, medians of the steps with and without, which take turns; and those of the parts that save_tokens
adds, summed up within the steps: they are told apart from noise where the medians are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sapo_vl.record.rollout_log as rollout_log
import sapo_vl.train as train
from sapo_vl.config import RunConfig, load_config
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.stages import run_stage
from sapo_vl.updates import StepRecord

SETTINGS = (
    "log.save_rollouts_every=1", "log.save_tokens=true", "processes=1", "zero.stage=0", "log.trackers=[]",
    "eval.before=false", "eval.max_per_task=1", "eval.every=0", "checkpoint.every=0",
)  # fmt: skip
WARM_UP = 2  # steps that are left out


class Clock:
    """Marks where steps begin, and adds up what the parts take."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float, float]] = []  # step, CPU seconds so far, those of the parts
        self._parts = 0.0

    def part(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self._parts += time.process_time() - started

        return timed

    def new_record(self, make: Callable[[RunConfig, int], StepRecord]) -> Callable[[RunConfig, int], StepRecord]:
        def made(config: RunConfig, step: int) -> StepRecord:
            self.marks.append((step, time.process_time(), self._parts))
            record = make(config, step)
            return record if step % 2 else dataclasses.replace(record, tokens=None)

        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=40, help="compared; some more are run")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    args = parser.parse_args()
    clock = Clock()
    TokenRecord.add = clock.part(TokenRecord.add)  # type: ignore[method-assign]
    TokenRecord.tokens = clock.part(TokenRecord.tokens)  # type: ignore[method-assign]
    rollout_log.write_tokens = clock.part(rollout_log.write_tokens)
    train.new_record = clock.new_record(train.new_record)
    with tempfile.TemporaryDirectory() as temporary:
        steps = f"steps={args.steps + WARM_UP + 1}"  # a step ends where the next one begins
        run_stage("train", load_config(args.run / "config.yaml", [*SETTINGS, steps, *args.settings]), Path(temporary))
        files = list((Path(temporary) / "rollouts").glob("*.tokens.safetensors"))
        size = sum(path.stat().st_size for path in files) / max(1, len(files))
    rows = [(a[0], b[1] - a[1], b[2] - a[2]) for a, b in zip(clock.marks, clock.marks[1:], strict=False)][WARM_UP:]
    with_tokens = [row for row in rows if row[0] % 2]
    without = statistics.median(row[1] for row in rows if not row[0] % 2)
    parts = statistics.median(row[2] for row in with_tokens)
    print(f"{len(rows)} steps; {size / 1000:.0f} kB of numbers a step")
    print(f"CPU seconds a step: {without:.3f} without, {statistics.median(r[1] for r in with_tokens):.3f} with")
    print(f"the parts alone: {1000 * parts:.1f} ms, {parts / without:.2%} of a step")


if __name__ == "__main__":
    main()
