"""grid: the colour of the cell at a row and column (from 1) of a square grid of 3, 4 or 5 cells a side."""

from __future__ import annotations

from random import Random

from data_recipes.visual_puzzles.draw import Canvas
from data_recipes.visual_puzzles.scene import COLOURS, SIDE
from data_recipes.visual_puzzles.task import Scene, Task

SIDES = (3, 4, 5)  # cells per side, by level


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    side = SIDES[level]
    cells = [[rng.choice(COLOURS) for _ in range(side)] for _ in range(side)]
    row, column = rng.randrange(side), rng.randrange(side)
    cells[row][column] = label
    return {"task": "grid", "level": level, "target": [row + 1, column + 1], "cells": cells}


def _answer(scene: Scene) -> str:
    row, column = scene["target"]
    return scene["cells"][row - 1][column - 1]


def _draw(scene: Scene, canvas: Canvas) -> None:
    side = len(scene["cells"])
    edges = [SIDE * i // side for i in range(side + 1)]
    for row, colours in enumerate(scene["cells"]):
        for column, colour in enumerate(colours):
            # One unit is left black on two sides, so that equal neighbours are still two cells.
            box = (edges[column], edges[row], edges[column + 1] - 1, edges[row + 1] - 1)
            canvas.rectangle(box, colour)


TASK = Task(
    name="grid",
    reward="word",
    num_levels=3,
    labels=lambda level: list(COLOURS),
    sample=_sample,
    question=lambda scene: "colour row {} column {} ?".format(*scene["target"]),
    scratch=lambda scene: "{} {}".format(*scene["target"]),
    answer=_answer,
    reward_meta=lambda scene: {},
    draw=_draw,
)
