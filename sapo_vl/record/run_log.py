"""The run's numbers: metrics.jsonl, which is always written, and the trackers that show it elsewhere."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import numbers
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from accelerate.state import PartialState
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from accelerate.utils import patch_environment
from pydantic import Field

from sapo_vl.distributed import World
from sapo_vl.record.files import write_text
from sapo_vl.record.notices import Notices, gate_bound
from sapo_vl.strict import Strict, parse_json

Phase = Literal["train", "eval", "sft"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]
Tracker = TensorBoardTracker | WandBTracker | TrackioTracker
METRICS_FILE = "metrics.jsonl"
log = logging.getLogger(__name__)
OWN_KEYS = ("step", "phase", "time", "nonfinite", "notices")


class LogConfig(Strict):
    """What a run writes down besides metrics.jsonl."""

    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where metrics go too: tensorboard to <run folder>/tensorboard; the others need their package."""
    project: str = "sapo_vl"
    """Project name for wandb and trackio; the run is named after its folder."""
    save_rollouts_every: int = Field(default=1, ge=0)
    """Write the rollouts of every n-th step; 0 = never."""
    save_tokens: bool = True
    """Write what the updates saw of every token of written rollouts too, 19 bytes a token (docs/metrics.md)."""
    save_tokens_mb: float = Field(default=8.0, gt=0)
    """Of that, at most so many megabytes a step, all ranks together: what is more is left out by whole groups, evenly
    spaced. 1,000 steps with long responses take 8 GB."""
    save_images: bool = True
    """Save the images of written rollouts too, each once."""
    save_sequences_every: int = Field(default=0, ge=0)
    """Write what was measured of each response in the updates of every n-th step (docs/metrics.md); 0 = never."""
    negative_tokens_every: int = Field(default=0, ge=0)
    """Measure over the vocabulary, before and after the updates of every n-th step, what they do to tokens that were
    not sampled (docs/metrics.md); 0 = never. Two forward passes of a micro-batch an update."""


class RunLog:
    """Writes metrics on the main rank and does nothing on the others. Usable as a context manager.

    metrics.jsonl is the record of a run. Trackers keep whatever they were sent: after a resume they show the
    repeated steps twice (wandb and trackio: as a second run of the same name). One that fails costs no run: `_Guarded`.

    Raises ModuleNotFoundError, on every rank, for a tracker whose package is not installed.
    """

    def __init__(self, out_dir: Path, config: LogConfig, run_config: Mapping[str, Any], world: World) -> None:
        check_trackers(config)
        self._is_main = world.is_main
        self._gate_bound = gate_bound(run_config)
        self.notices = Notices(self._gate_bound)
        self._path = Path(out_dir) / METRICS_FILE
        self._trackers: list[_Guarded] = []
        if not self._is_main:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._continue(read_metrics(self._path) if self._path.exists() else [])
        self._trackers = [
            _Guarded(name, partial(_start_tracker, name, Path(out_dir), config, run_config)) for name in config.trackers
        ]

    def metrics(self, step: int, phase: Phase, values: Mapping[str, Any]) -> None:
        """Appends one line: step, phase, time (seconds since the start of the run), then `values`.

        Values are numbers, lists of numbers, or None for what could not be measured. NaN and infinities are
        written as null and their names collected under "nonfinite", so that every line is plain JSON. Under "notices"
        are the names of the signs of trouble that are on, if any.
        Trackers get the finite scalars as "{phase}/{name}".

        Raises TypeError for a value that is no number, ValueError for a reserved name or unknown phase.
        """
        if not self._is_main:
            return
        if phase not in get_args(Phase):
            raise ValueError(f"phase {phase!r} is none of {get_args(Phase)}")
        if taken := [name for name in OWN_KEYS if name in values]:
            raise ValueError(f"metric names {taken} are taken by the line itself; rename them")
        plain = {name: _plain_numbers(name, value) for name, value in values.items()}
        row = {"step": int(step), "phase": phase, "time": round(time.monotonic() - self._start, 3)}
        finite = {name: _finite(value) for name, value in plain.items()}
        row |= finite
        if broken := [name for name, value in plain.items() if finite[name] != value]:
            row["nonfinite"] = broken
        if on := self.notices.add(row):
            row["notices"] = on
        self._unwritten += _json(row) + "\n"
        self._write()
        numbers_only = {name: v for name, v in plain.items() if isinstance(v, int | float)}
        scalars = {f"{phase}/{name}": v for name, v in numbers_only.items() if math.isfinite(v)}
        for tracker in self._trackers:
            tracker.log(phase, step, scalars, room=not self._unwritten)

    def truncate_from(self, step: int, phases: Collection[Phase] = ("train", "eval")) -> None:
        """Drops the lines of these phases of `step` and later; the file is replaced as a whole.

        For a run that goes on from a checkpoint and will write step `step` next, or a cold start that is done
        again. Lines of other phases stay, and time goes on from the last line kept.
        """
        if not self._is_main:
            return
        self._file.close()
        rows = read_metrics(self._path)
        before = {row["phase"] for row in rows if row["step"] == step - 1}
        if step > 1 and not before.issuperset(set(phases) - {"eval"}):
            log.warning(
                "%s has no line of step %d, after which the run goes on: it was written elsewhere, or is lost",
                self._path, step - 1,
            )  # fmt: skip
        self._continue([row for row in rows if row["phase"] not in phases or row["step"] < step])

    def _write(self) -> None:
        """Writes what is to be written; what the disk does not take now is kept for the next time, whole lines."""
        data = memoryview(self._unwritten.encode())
        before = None
        try:
            before = os.fstat(self._file.fileno()).st_size
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # then it is as bad the next time, and told then
                if before is not None:
                    os.truncate(self._path, before)
                # On a network's disk a handle may be stale for good.
                stale, self._file = self._file, self._path.open("ab", buffering=0)
                stale.close()
            log.warning("%s could not be written (%s); its lines are kept for later", self._path, error)
            return
        self._unwritten = ""

    def close(self) -> None:
        """Closes the file and ends the trackers' runs."""
        if not self._is_main:
            return
        self._write()
        self._file.close()
        if self._unwritten:
            log.error(
                "%s lacks its last %d lines, which the disk did not take", self._path, self._unwritten.count("\n")
            )
        for tracker in self._trackers:
            tracker.finish()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _continue(self, rows: list[dict[str, Any]]) -> None:
        """Makes `rows` the content of the file and opens it for more."""
        write_text(self._path, "".join(_json(row) + "\n" for row in rows))
        self.notices = Notices(self._gate_bound, rows)
        self._start = time.monotonic() - max((row["time"] for row in rows), default=0.0)
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = ""  # whole lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A last line that was cut off by a crash is left out.

    Raises ValueError naming file and line for another line that is not a JSON object with step, phase, time.
    """
    try:
        *lines, _cut_off = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    return list(_parse_rows(path, lines))


def _parse_rows(path: Path, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error}); repair or delete this line") from error
        if not isinstance(row, dict) or not _has_own_keys(row):
            raise ValueError(f"{path}:{number} is not an object with step, phase, time, numbers; delete this line")
        yield row


def _has_own_keys(row: Mapping[str, Any]) -> bool:
    step, time = row.get("step"), row.get("time")
    notices = row.get("notices", [])
    if not isinstance(notices, list) or not all(isinstance(name, str) for name in notices):
        return False
    numbers_only = type(step) is int and isinstance(time, int | float) and math.isfinite(time)
    values = (value for name, value in row.items() if name not in OWN_KEYS)
    return numbers_only and row.get("phase") in get_args(Phase) and all(map(_is_value, values))


def _is_value(value: Any) -> bool:
    """A number, a list of numbers, or None: what `RunLog.metrics` writes."""
    return all(v is None or type(v) in (int, float) for v in (value if isinstance(value, list) else [value]))


def write_json(path: Path, obj: Any) -> None:
    """Writes `obj` as JSON: the old content or the new one is there at any moment, never a part.

    NaN and infinities become null, numpy scalars numbers, paths text. Raises TypeError for other objects.
    """
    write_text(Path(path), _json(_finite(obj), indent=2) + "\n")


def check_trackers(config: LogConfig) -> None:
    """Raises ModuleNotFoundError with the command that helps if a tracker's package is not installed."""
    for name in config.trackers:
        # Not find_spec: a folder named wandb, which wandb itself leaves behind, would pass for the package.
        if not any(importlib.metadata.distributions(name=name)):
            package = "tensorboard" if name == "tensorboard" else f"sapo-vl[{name}]"
            raise ModuleNotFoundError(
                f"log.trackers asks for {name}, which is not installed: pip install '{package}'", name=name
            )


class _Guarded:
    """A tracker whose faults cost no run: the first one is a warning, and metrics.jsonl has every step all the same.

    A service that has failed gets nothing more. TensorBoard's writer, whose thread ends when a write fails, is replaced
    by one with an event file of its own once there is room; what fails after that is told again.
    """

    def __init__(self, name: TrackerName, start: Callable[[], Tracker]) -> None:
        """Raises ImportError if the package is not there, or not whole."""
        self._name, self._start = name, start
        self._tracker: Tracker | None = None
        self._told = False
        try:
            self._tracker = start()
        except ImportError:
            raise
        except Exception as error:
            self._lose("start", error)

    def log(self, phase: Phase, step: int, scalars: Mapping[str, float], *, room: bool) -> None:
        """`room`: whether the disk takes what is written; an event file that cannot be filled is not begun."""
        may_begin = room and self._name == "tensorboard"
        # A thread writes: the fault of a step may show with the next one, which is not to be lost for that.
        tries = 2 if self._tracker is not None and may_begin else 1
        for _ in range(tries):
            if self._tracker is None and not may_begin:
                return
            try:
                self._send(phase, step, scalars)
                self._told = False
                return
            except Exception as error:
                self._lose(f"take step {step}", error)

    def finish(self) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.finish()
        except Exception as error:
            self._lose("finish", error)

    def _send(self, phase: Phase, step: int, scalars: Mapping[str, float]) -> None:
        if self._tracker is None:
            self._tracker = self._start()
        # wandb's own step may only grow, ours starts over with each phase.
        own = isinstance(self._tracker, WandBTracker)
        self._tracker.log({f"{phase}/step": step, **scalars} if own else dict(scalars), step=None if own else step)

    def _lose(self, what: str, error: Exception) -> None:
        """Whatever the error: each service has its own classes, and none is worth a training."""
        self._tracker = None
        if not self._told:
            goes_on = self._name == "tensorboard" and what != "finish"
            then = "a new event file follows" if goes_on else "it gets nothing more of this run"
            log.warning(
                "%s did not %s (%s: %s); %s, and %s has every step",
                self._name, what, type(error).__name__, error, then, METRICS_FILE,
            )  # fmt: skip
        self._told = True


def _start_tracker(name: TrackerName, out_dir: Path, config: LogConfig, run_config: Mapping[str, Any]) -> Tracker:
    # accelerate's trackers insist on its process state. Only the main rank has trackers, so accelerate is
    # told that it is alone: otherwise it would look at, or start, a process group.
    with patch_environment(local_rank=-1):
        PartialState()
    settings = json.loads(_json(_finite(dict(run_config))))
    out_dir = out_dir.resolve()
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=out_dir)
        tracker.start()
        tracker.log({"config": "    " + _json(settings, indent=2).replace("\n", "\n    ")}, step=0)
    elif name == "wandb":
        tracker = WandBTracker(config.project, name=out_dir.name, dir=str(out_dir), config=settings)
        tracker.start()
        for phase in get_args(Phase):
            tracker.tracker.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
    else:
        tracker = TrackioTracker(config.project, name=out_dir.name, config=settings)
        tracker.start()
    return tracker


def _plain_numbers(name: str, value: Any) -> int | float | list[int | float] | None:
    if value is None or type(value) is float:  # nearly all are: the classes of numbers.py take long to ask
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain_number(name, v) for v in value]
    return _plain_number(name, value)


def _plain_number(name: str, value: Any) -> int | float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"metric {name!r} is {value!r} of type {type(value).__name__}; give a number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _finite(obj: Any) -> Any:
    """`obj` with None in place of every NaN and infinity."""
    if isinstance(obj, float | np.floating):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    if isinstance(obj, Mapping):
        return {key: _finite(value) for key, value in obj.items()}
    return obj


def _json(obj: Any, indent: int | None = None) -> str:
    return json.dumps(obj, allow_nan=False, indent=indent, default=_plain)


def _plain(obj: Any) -> Any:
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"{obj!r} of type {type(obj).__name__} cannot be written as JSON")
