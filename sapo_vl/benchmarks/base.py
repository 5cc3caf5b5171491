"""What a benchmark is: where its items come from, how they are asked, by which rule they are scored.

A benchmark holds no scoring code. It turns rows into problems; the reward a problem names (rewards.REWARDS) is its
rule, and `meta` carries what the rule needs. So evaluation, rescoring and training judge an answer in one way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from sapo_vl.types import Problem

GROUPS = "groups"  # key of Problem.meta: {"subject": "algebra", "level": "3"}; accuracy is also given by each of these


class LeftOut(ValueError):
    """A row that is fine but cannot be asked or scored, such as one with a blanked gold. Counted by its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the benchmark's data set."""

    index: int  # place in the split
    cells: Mapping[str, Any]  # as stored; images are cells
    image: Callable[[Any], Image.Image] = field(repr=False)  # reads an image cell; raises ImageRefused, a ValueError


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScores:
    """What came of one item: its problem without the images, and the accuracy of each of its k responses."""

    id: str
    meta: Mapping[str, Any]
    scores: Sequence[float | None]  # [k], in [0, 1]; None: could not be scored
    parts: Sequence[Mapping[str, float]]  # [k], what the reward reported beside the score

    @property
    def mean(self) -> float | None:
        """Over the responses that could be scored; None if there is none."""
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark, or one configuration of it."""

    name: str
    source: str  # id on the hub
    split: str
    licence: str  # as the card states it; "unknown" where it states none
    columns: tuple[str, ...]  # that rows must have
    problems: Callable[[Row], Iterable[Problem]]
    """The problems of a row, mostly one. Problem.id must be stable and unique in the benchmark. Raises ValueError if
    the row is broken (it is named, counted and left out), LeftOut if it is fine but not to be asked."""
    config: str | None = None  # configuration of the hub set
    rows: int = 0  # of the split, as the set's card says; 0 = unknown. `sapo-vl data doctor` compares
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Config -> files with its rows, of a set whose files a loading script would choose; {} for others."""
    k: int = 1  # responses an item that the benchmark is usually reported with
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a reward -> arguments that its rule needs here; rewards.params of a config goes before them."""
    timeout_s: float = 0.0  # seconds that scoring a response may need; a larger rewards.timeout_s of a config stays
    official: str = ""
    """Name of a rule of rewards.official: that of the benchmark's own script, which its published figures come from,
    where it says other things than ours. "" where ours is the same, or where theirs asks a language model."""
    metrics: Callable[[Sequence[ItemScores]], Mapping[str, float]] | None = None
    """Figures of the benchmark's own (worst case over variants, strict scores), in the order of the items."""
