"""Colours, shapes, held-out pairs, object placement, and the hash that keeps test scenes out of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from data_recipes.visual_puzzles.task import Scene

COLOURS = ("red", "green", "blue", "yellow", "cyan", "purple")
SHAPES = ("disc", "square", "triangle")

# Colour-shape pairs that only "test_composition" shows: there every object asked about is such a pair. Every
# colour and every shape is seen in training too, in other pairs (the idea of CLEVR-CoGenT, arXiv 1612.06890).
HELD_OUT = {colour: SHAPES[i % len(SHAPES)] for i, colour in enumerate(COLOURS)}

SIDE = 64  # scenes are laid out in units of 1/64 of the picture's side
CELL = 16  # side of a cell of the 4 x 4 grid that objects are placed in
CELLS_PER_SIDE = SIDE // CELL
MIN_OBJECT, MAX_OBJECT = 10, 13  # side of an object; with a margin in the cell, objects never touch


def scene_key(scene: Scene) -> str:
    """A hash of the scene that is the same in every process and version."""
    text = json.dumps(scene, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def is_test_scene(key: str) -> bool:
    """True for one scene in ten. The scene alone decides: no seed puts a test scene into training."""
    return int(key, 16) % 10 == 0


def shapes_for(colour: str, held_out: bool) -> list[str]:
    """The shapes `colour` may be paired with, with or without the held-out pairs only."""
    return [shape for shape in SHAPES if (HELD_OUT[colour] == shape) == held_out]


def colours_for(shape: str, held_out: bool) -> list[str]:
    """The colours `shape` may be paired with, with or without the held-out pairs only."""
    return [colour for colour in COLOURS if (HELD_OUT[colour] == shape) == held_out]


def with_shapes(rng: Random, colours: Iterable[str], held_out: bool) -> list[tuple[str, str]]:
    """(colour, shape) for each colour, the shape drawn from those it may be paired with."""
    return [(colour, rng.choice(shapes_for(colour, held_out))) for colour in colours]


def lookalikes(rng: Random, colour: str, shape: str, count: int) -> list[tuple[str, str]]:
    """`count` distractors for the pair (colour, shape), out of the pairs of training.

    They share its colour or its shape but not both, so that neither alone answers the question.
    """
    same_colour = [(colour, other) for other in shapes_for(colour, False) if other != shape]
    same_shape = [(other, shape) for other in colours_for(shape, False) if other != colour]
    return [rng.choice(same_colour if i % 2 == 0 else same_shape) for i in range(count)]


def place(rng: Random, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Objects for the (colour, shape) `pairs`, each in a cell of its own with jitter, in canonical order."""
    cells = rng.sample(range(CELLS_PER_SIDE**2), len(pairs))
    return sorted_objects(
        object_in_cell(rng, pair, cell % CELLS_PER_SIDE, cell // CELLS_PER_SIDE)
        for pair, cell in zip(pairs, cells, strict=True)
    )


def object_in_cell(rng: Random, pair: tuple[str, str], column: int, row: int) -> dict[str, Any]:
    """An object somewhere inside a cell, at least one unit from the cell's border."""
    colour, shape = pair
    size = rng.randint(MIN_OBJECT, MAX_OBJECT)
    x = CELL * column + rng.randint(1, CELL - 1 - size)
    y = CELL * row + rng.randint(1, CELL - 1 - size)
    return {"colour": colour, "shape": shape, "box": [x, y, x + size, y + size]}


def sorted_objects(objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One order for the same picture, by cell row, then by x."""
    return sorted(objects, key=lambda o: (o["box"][1] // CELL, o["box"][0], o["box"][1]))


def cell_of(item: dict[str, Any]) -> tuple[int, int]:
    """(column, row) of the cell an object lies in."""
    return item["box"][0] // CELL, item["box"][1] // CELL


def matches(item: dict[str, Any], target: Sequence[str]) -> bool:
    """True if the object has the colour `target[0]` and, if given, the shape `target[1]`."""
    return item["colour"] == target[0] and (len(target) == 1 or item["shape"] == target[1])
