"""spatial: where two objects are relative to each other.

Level 0: "is red left of blue" or "above", yes or no, two objects. Level 1: the same with two more objects.
Level 2: the shape of the one object that is left of, or above, a given one (three or four objects).
The scratch is column and row of the cells of the objects in question.
"""

from __future__ import annotations

from random import Random
from typing import Any

from data_recipes.visual_puzzles.draw import draw_objects
from data_recipes.visual_puzzles.scene import (
    CELLS_PER_SIDE,
    COLOURS,
    SHAPES,
    cell_of,
    colours_for,
    object_in_cell,
    shapes_for,
    sorted_objects,
    with_shapes,
)
from data_recipes.visual_puzzles.task import Scene, Task

AXIS = {"left of": 0, "above": 1}
EVERY_CELL = [(column, row) for row in range(CELLS_PER_SIDE) for column in range(CELLS_PER_SIDE)]


def _labels(level: int) -> list[str]:
    return ["yes", "no"] if level < 2 else list(SHAPES)


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    relation = rng.choice(list(AXIS))
    if level < 2:
        colours, pairs, cells = _sample_yes_no(rng, level, label, AXIS[relation], held_out)
    else:
        colours, pairs, cells = _sample_shape(rng, label, AXIS[relation], held_out)
    objects = [object_in_cell(rng, pair, *cell) for pair, cell in zip(pairs, cells, strict=True)]
    return {
        "task": "spatial",
        "level": level,
        "relation": relation,
        "target": colours,
        "objects": sorted_objects(objects),
    }


def _sample_yes_no(rng: Random, level: int, label: str, axis: int, held_out: bool) -> Any:
    """Two named objects, the first clearly on the asked side or clearly on the other one; then the rest."""
    colours = rng.sample(COLOURS, 2 + 2 * level)
    while True:
        cells = rng.sample(EVERY_CELL, len(colours))
        first, second = cells[0][axis], cells[1][axis]
        if first != second and (first < second) == (label == "yes"):
            return colours[:2], with_shapes(rng, colours, held_out), cells


def _sample_shape(rng: Random, label: str, axis: int, held_out: bool) -> Any:
    """A named object, one of shape `label` on the asked side of it, one or two on the other side."""
    found = rng.choice(colours_for(label, held_out))
    named, *others = rng.sample([c for c in COLOURS if c != found], rng.randint(2, 3))
    pairs = [(named, rng.choice(shapes_for(named, held_out))), (found, label)]
    pairs += with_shapes(rng, others, held_out)
    while True:
        cells = rng.sample(EVERY_CELL, len(pairs))
        reference, asked, *rest = (cell[axis] for cell in cells)
        if asked < reference and all(other > reference for other in rest):
            return [named], pairs, cells


def _object(scene: Scene, colour: str) -> dict[str, Any]:
    return next(item for item in scene["objects"] if item["colour"] == colour)


def _found(scene: Scene) -> dict[str, Any]:
    """Level 2: the object on the asked side of the named one."""
    axis = AXIS[scene["relation"]]
    limit = cell_of(_object(scene, scene["target"][0]))[axis]
    return next(item for item in scene["objects"] if cell_of(item)[axis] < limit)


def _answer(scene: Scene) -> str:
    if scene["level"] == 2:
        return _found(scene)["shape"]
    axis = AXIS[scene["relation"]]
    first, second = (cell_of(_object(scene, colour))[axis] for colour in scene["target"])
    return "yes" if first < second else "no"


def _scratch(scene: Scene) -> str:
    asked = [_object(scene, colour) for colour in scene["target"]]
    if scene["level"] == 2:
        asked.append(_found(scene))
    return " ".join(str(v) for item in asked for v in cell_of(item))


def _question(scene: Scene) -> str:
    if scene["level"] == 2:
        return f"shape {scene['relation']} {scene['target'][0]} ?"
    first, second = scene["target"]
    return f"is {first} {scene['relation']} {second} ?"


TASK = Task(
    name="spatial",
    reward="choice",
    num_levels=3,
    labels=_labels,
    sample=_sample,
    question=_question,
    scratch=_scratch,
    answer=_answer,
    reward_meta=lambda scene: {"choices": _labels(scene["level"])},
    draw=draw_objects,
    paired_levels=(0, 1, 2),
)
