"""count: how many objects of a colour (level 2: of a colour and shape) there are.

Level 0: 0-4 targets among 1-2 others. Level 1: 0-6 among 2-4. Level 2: 0-6 among 3-6 that share colour or
shape. The scratch is the number of targets in each of the four rows of cells.
"""

from __future__ import annotations

from random import Random

from data_recipes.visual_puzzles.draw import draw_objects
from data_recipes.visual_puzzles.scene import (
    CELLS_PER_SIDE,
    COLOURS,
    cell_of,
    lookalikes,
    matches,
    place,
    shapes_for,
    with_shapes,
)
from data_recipes.visual_puzzles.task import Scene, Task

MOST = (4, 6, 6)  # targets, by level
DISTRACTORS = ((1, 2), (2, 4), (3, 6))  # least and most, by level


def _labels(level: int) -> list[str]:
    return [str(n) for n in range(MOST[level] + 1)]


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    count, others = int(label), rng.randint(*DISTRACTORS[level])
    colour = rng.choice(COLOURS)
    if level < 2:
        target = [colour]
        rest = [rng.choice([c for c in COLOURS if c != colour]) for _ in range(others)]
        pairs = with_shapes(rng, [colour] * count + rest, held_out)
    else:
        shape = rng.choice(shapes_for(colour, held_out))
        target = [colour, shape]
        pairs = [(colour, shape)] * count + lookalikes(rng, colour, shape, others)
    return {"task": "count", "level": level, "target": target, "objects": place(rng, pairs)}


def _question(scene: Scene) -> str:
    return f"how many {' '.join(scene['target'])} ?"


def _row_counts(scene: Scene) -> list[int]:
    rows = [cell_of(item)[1] for item in scene["objects"] if matches(item, scene["target"])]
    return [rows.count(row) for row in range(CELLS_PER_SIDE)]


TASK = Task(
    name="count",
    reward="number",
    num_levels=3,
    labels=_labels,
    sample=_sample,
    question=_question,
    scratch=lambda scene: " ".join(map(str, _row_counts(scene))),
    answer=lambda scene: str(sum(_row_counts(scene))),
    reward_meta=lambda scene: {},
    draw=draw_objects,
    paired_levels=(0, 1, 2),
)
