"""ground: the box of an object as "x1 y1 x2 y2" on a lattice of 0..15, where one step is 1/16 of the picture.

Level 0: a filled rectangle asked for by colour, one other. Level 1: shapes, smaller, three others. Level 2:
asked for by colour and shape, three others that share one of the two. Objects fill their boxes, and box
corners are lattice points, so the answer is exact.
"""

from __future__ import annotations

from random import Random
from typing import Any

from data_recipes.visual_puzzles.draw import draw_objects
from data_recipes.visual_puzzles.scene import COLOURS, lookalikes, matches, shapes_for, with_shapes
from data_recipes.visual_puzzles.task import Scene, Task

STEP = 4  # units of the picture per lattice step
LATTICE = 15  # largest coordinate
SIDES = ((5, 8), (3, 5), (3, 5))  # least and most lattice steps of a side, by level
DISTRACTORS = (1, 3, 3)  # by level


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    colour, *others = rng.sample(COLOURS, 1 + DISTRACTORS[level])
    if level == 0:
        target = [colour]
        pairs = [(c, "rectangle") for c in (colour, *others)]
    elif level == 1:
        target = [colour]
        pairs = with_shapes(rng, [colour, *others], held_out)
    else:
        shape = rng.choice(shapes_for(colour, held_out))
        target = [colour, shape]
        pairs = [(colour, shape), *lookalikes(rng, colour, shape, DISTRACTORS[level])]
    objects = [
        {"colour": c, "shape": s, "box": [STEP * v for v in box]}
        for (c, s), box in zip(pairs, _boxes(rng, level, len(pairs)), strict=True)
    ]
    objects.sort(key=lambda item: item["box"])
    return {"task": "ground", "level": level, "target": target, "objects": objects}


def _boxes(rng: Random, level: int, count: int) -> list[tuple[int, int, int, int]]:
    """`count` lattice boxes with a step between any two, so that objects of one colour stay apart."""
    while True:
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(20 * count):
            width = rng.randint(*SIDES[level])
            height = rng.randint(*SIDES[level]) if level == 0 else width  # a square is as wide as it is high
            x, y = rng.randint(0, LATTICE - width), rng.randint(0, LATTICE - height)
            box = (x, y, x + width, y + height)
            if not any(_touch(box, other) for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                return boxes


def _touch(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _target(scene: Scene) -> dict[str, Any]:
    return next(item for item in scene["objects"] if matches(item, scene["target"]))


TASK = Task(
    name="ground",
    reward="box",
    num_levels=3,
    labels=lambda level: ["box"],  # no classes to balance: position and size are drawn uniformly
    sample=_sample,
    question=lambda scene: f"box of {' '.join(scene['target'])} ?",
    scratch=lambda scene: " ".join(scene["target"]),
    answer=lambda scene: " ".join(str(v // STEP) for v in _target(scene)["box"]),
    reward_meta=lambda scene: {"threshold": 0.5, "lattice": LATTICE + 1},  # the second for whoever draws boxes
    draw=draw_objects,
    paired_levels=(1, 2),
)
