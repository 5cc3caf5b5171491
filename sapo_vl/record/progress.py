"""What a person sees while a run goes on, and where its time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

EVERY_STEPS = 10
EVERY_SECONDS = 30.0
SHOWN = {"reward": "reward/mean", "acc": "accuracy/mean"}  # label -> metric


class PhaseTimer:
    """Seconds by phase (rollout, reward, train, sync, eval): `with timer("rollout"): ...`.

    A phase entered inside another one stops the outer one's clock, so the phases of a step never add up to
    more than the step. `on_phase` is told each phase that begins.
    """

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self._taken: dict[str, float] = defaultdict(float)
        self._on_phase = on_phase
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._step_start = self._mark = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._book()
        self._open.append(phase)
        if self._on_phase is not None:
            self._on_phase(phase)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @property
    def totals(self) -> dict[str, float]:
        """Seconds by phase since the start of the run, without the prefix."""
        self._book()
        names = {*self._taken, *self._seconds}
        return {name: self._taken.get(name, 0.0) + self._seconds.get(name, 0.0) for name in sorted(names)}

    def take(self) -> dict[str, float]:
        """{"seconds/<phase>": ..., "seconds/step": wall time} since the last take, and starts over."""
        self._book()
        taken = {f"seconds/{phase}": s for phase, s in self._seconds.items()}
        taken["seconds/step"] = self._mark - self._step_start
        for phase, seconds in self._seconds.items():
            self._taken[phase] += seconds
        self._seconds.clear()
        self._step_start = self._mark
        return taken

    def _book(self) -> None:
        """Adds the time since the last call to the innermost open phase."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now


class Progress:
    """A live bar on a terminal; elsewhere a plain line every EVERY_STEPS steps or EVERY_SECONDS seconds.

    `enabled` is False on all ranks but one. `start_step` is where a resumed run goes on, for rate and ETA.
    Usable as a context manager.
    """

    def __init__(
        self, total_steps: int, enabled: bool = True, start_step: int = 0, console: Console | None = None
    ) -> None:
        self._total, self._first, self._enabled = total_steps, start_step, enabled
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._start = self._last_line = time.monotonic()
        self._last_step = start_step
        self._bar: Bar | None = None
        if enabled and self._console.is_terminal:
            columns = (TextColumn("{task.fields[phase]:<8}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[facts]}", markup=False), console=self._console)
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, phase="", facts="")
            self._bar.start()

    def phase(self, name: str) -> None:
        """Shows what the run is doing; fits `PhaseTimer(on_phase=progress.phase)`."""
        if self._bar is not None:
            self._bar.update(self._task, phase=name)

    def step(self, done: int, values: Mapping[str, float | list[float]]) -> None:
        """After a step: `done` steps are finished in all; `values` are its metrics, with seconds/<phase>."""
        if not self._enabled:
            return
        now = time.monotonic()
        seconds_per_step = (now - self._start) / max(1, done - self._first)
        facts = describe(values, seconds_per_step, max(0, self._total - done))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts=facts)
            return
        first, last = self._last_step == self._first, done >= self._total
        if first or last or done - self._last_step >= EVERY_STEPS or now - self._last_line >= EVERY_SECONDS:
            self.say(f"step {done}/{self._total} | {facts}")
            self._last_step, self._last_line = done, now

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one. Nothing in `text` is taken as markup."""
        if self._enabled:
            self._console.print(text, markup=False, emoji=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe(values: Mapping[str, float | list[float]], seconds_per_step: float, steps_left: int) -> str:
    """`reward 0.53 | acc 0.61 | 3.1 it/s | ETA 1m02s | rollout 0.11s train 0.20s`, less what is missing."""
    facts = [f"{label} {values[name]:.2f}" for label, name in SHOWN.items() if name in values]
    rate = 1 / max(seconds_per_step, 1e-9)
    facts.append(f"{rate:.1f} it/s" if rate >= 1 else f"{seconds_per_step:.1f} s/it")
    facts.append(f"ETA {duration(seconds_per_step * steps_left)}")
    phases = [
        f"{name.removeprefix('seconds/')} {seconds:.2f}s"
        for name, seconds in values.items()
        if name.startswith("seconds/") and name != "seconds/step"
    ]
    return " | ".join([*facts, " ".join(phases)] if phases else facts)


def duration(seconds: float) -> str:
    """12s, 1m02s, 3h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
