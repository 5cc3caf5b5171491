"""What the schedule runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Commands, one after the other, that fill a folder."""

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]  # arguments of the Python that this is
    result: Path  # is there when the job is done
    hash: str  # of everything that the result depends on: another hash, another job
    ranks: int  # RunConfig.processes: 0 = one per GPU
    about: dict[str, Any]  # goes into job.json
    after: str = ""  # the name of a job that must be done before
