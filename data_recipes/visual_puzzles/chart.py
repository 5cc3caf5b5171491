"""chart: the value 1-9 of a coloured bar (level 2: the difference of two bars).

Level 0: three bars. Level 1: five. Level 2: four, "red minus blue". The scratch is the column of each bar
asked for, from 1 (level 2: with its value).
"""

from __future__ import annotations

from random import Random

from data_recipes.visual_puzzles.draw import Canvas
from data_recipes.visual_puzzles.scene import COLOURS, SIDE
from data_recipes.visual_puzzles.task import Scene, Task

BARS = (3, 5, 4)  # by level
LARGEST = 9
UNIT = 6  # height of one unit of value
BASE = 60  # y of the axis


def _labels(level: int) -> list[str]:
    return [str(v) for v in (range(1, LARGEST + 1) if level < 2 else range(LARGEST))]


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    colours = rng.sample(COLOURS, BARS[level])
    values = [rng.randint(1, LARGEST) for _ in colours]
    asked = rng.sample(range(len(colours)), 1 if level < 2 else 2)
    if level < 2:
        values[asked[0]] = int(label)
    else:
        values[asked[1]] = rng.randint(1, LARGEST - int(label))
        values[asked[0]] = values[asked[1]] + int(label)
    bars = [[colour, value] for colour, value in zip(colours, values, strict=True)]
    return {"task": "chart", "level": level, "target": [colours[i] for i in asked], "bars": bars}


def _question(scene: Scene) -> str:
    return f"{' minus '.join(scene['target'])} ?" if scene["level"] == 2 else f"value of {scene['target'][0]} ?"


def _answer(scene: Scene) -> str:
    first, *second = (dict(scene["bars"])[colour] for colour in scene["target"])
    return str(first - sum(second))


def _scratch(scene: Scene) -> str:
    columns = {colour: (column, value) for column, (colour, value) in enumerate(scene["bars"], start=1)}
    asked = [columns[colour] for colour in scene["target"]]
    if scene["level"] == 2:
        return " ".join(f"{column} {value}" for column, value in asked)
    return str(asked[0][0])


def _draw(scene: Scene, canvas: Canvas) -> None:
    width = SIDE // len(scene["bars"])
    for value in range(LARGEST + 1):  # a tick for every unit, the axis at 0
        y = BASE - UNIT * value
        canvas.rectangle((0, y, SIDE if value == 0 else 2, y + 1), "grey")
    for column, (colour, value) in enumerate(scene["bars"]):
        left = column * width
        canvas.rectangle((left + 3, BASE - UNIT * value, left + width - 2, BASE), colour)


TASK = Task(
    name="chart",
    reward="number",
    num_levels=3,
    labels=_labels,
    sample=_sample,
    question=_question,
    scratch=_scratch,
    answer=_answer,
    reward_meta=lambda scene: {},
    draw=_draw,
)
