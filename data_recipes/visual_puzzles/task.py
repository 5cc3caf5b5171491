"""What a puzzle task is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from data_recipes.visual_puzzles.draw import Canvas

# A latent scene: JSON-like, complete (picture, question and answer follow from it), in one canonical order.
Scene = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task is a way to sample scenes and four readings of a scene. Every level is 0 .. num_levels - 1."""

    name: str
    reward: str  # a key of rewards.REWARDS
    num_levels: int
    labels: Callable[[int], Sequence[str]]  # level -> what a split is balanced over, usually the answers
    sample: Callable[[Random, int, str, bool], Scene]  # (rng, level, label, held-out pairs?) -> scene
    question: Callable[[Scene], str]
    scratch: Callable[[Scene], str]  # what goes between the think tags, never empty
    answer: Callable[[Scene], str]
    reward_meta: Callable[[Scene], Mapping[str, Any]]  # what the reward reads from Problem.meta
    draw: Callable[[Scene, Canvas], None] | None  # None: the task is text only
    # Levels whose pictures pair colours with shapes, so that pairs can be held out.
    paired_levels: tuple[int, ...] = ()
