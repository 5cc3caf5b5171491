"""What is handed to servers at a sync."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """A set of weights on its way."""

    folder: Path  # where they lie; sapo_has asks for it
    tensors: int
    label: str  # what servers call these weights in every answer; no two packages of any run share one
    base: str = ""  # which model these are adapters of; "" = they are all weights of a model
    reads: int = 0  # bytes that a server reads to take them over
