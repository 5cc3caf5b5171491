"""arith: a sum written in the picture in 5 x 7 glyphs, at a jittered place. The scratch is the two digits.

Level 0: a + b with digits 0-4. Level 1: digits 0-9. Level 2: plus, minus (not below 0) or times, with noise
dots.
"""

from __future__ import annotations

import operator
from random import Random

from data_recipes.visual_puzzles.draw import GLYPH_HEIGHT, GLYPH_WIDTH, Canvas
from data_recipes.visual_puzzles.scene import SIDE
from data_recipes.visual_puzzles.task import Scene, Task

DIGITS = (5, 10, 10)  # digits 0 .. n - 1, by level
OPERATORS = {"+": operator.add, "-": operator.sub, "x": operator.mul}
SCALE = 3
NOISE_DOTS = 12
WIDTH = SCALE * (3 * (GLYPH_WIDTH + 1) - 1)
HEIGHT = SCALE * GLYPH_HEIGHT


def _terms(level: int) -> dict[str, list[tuple[int, str, int]]]:
    """Every (a, operator, b) of a level, by its result."""
    found: dict[str, list[tuple[int, str, int]]] = {}
    for sign in OPERATORS if level == 2 else "+":
        for a in range(DIGITS[level]):
            for b in range(DIGITS[level]):
                if sign != "-" or a >= b:
                    found.setdefault(str(OPERATORS[sign](a, b)), []).append((a, sign, b))
    return found


TERMS = tuple(_terms(level) for level in range(3))


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    noise = NOISE_DOTS if level == 2 else 0
    return {
        "task": "arith",
        "level": level,
        "terms": list(rng.choice(TERMS[level][label])),
        "at": [rng.randint(0, SIDE - WIDTH), rng.randint(0, SIDE - HEIGHT)],
        "noise": [[rng.randrange(SIDE - 1), rng.randrange(SIDE - 1)] for _ in range(noise)],
    }


def _answer(scene: Scene) -> str:
    a, sign, b = scene["terms"]
    return str(OPERATORS[sign](a, b))


def _draw(scene: Scene, canvas: Canvas) -> None:
    for x, y in scene["noise"]:
        canvas.rectangle((x, y, x + 2, y + 2), "grey")
    canvas.text("".join(map(str, scene["terms"])), *scene["at"], scale=SCALE)


TASK = Task(
    name="arith",
    reward="number",
    num_levels=3,
    labels=lambda level: sorted(TERMS[level], key=int),
    sample=_sample,
    question=lambda scene: "result ?",
    scratch=lambda scene: f"{scene['terms'][0]} {scene['terms'][2]}",
    answer=_answer,
    reward_meta=lambda scene: {},
    draw=_draw,
)
