"""What a check of the doctor is given and gives back."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class Outcome(enum.StrEnum):
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"  # does not apply here; the detail says why


class Unfit(Exception):
    """A check did not hold. `remedy` says what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Inapplicable(Exception):
    """There is nothing to check on this installation, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    outcome: Outcome
    detail: str  # figures if it passed, the reason if not
    remedy: str  # "" unless it failed
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined: this installation, with a model folder of the user's if given."""

    model: str  # "" = only the tiny models the doctor builds
    scratch: Path  # an empty folder for what checks write
    seed: int = field(default=0)


Check = Callable[[Subject], str]  # returns the detail; raises Unfit or Inapplicable
